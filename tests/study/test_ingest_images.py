"""Slides without spots, and files of patches: from disk to embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import spared_fm
from spared_fm.errors import InputError
from spared_fm.extract.source import check_extent, patch_source
from spared_fm.slides.patches import PatchSpec
from spared_fm.store.embeddings import slide_record
from spared_fm.study.api import Study
from tests.slides.layouts import square_slide
from tests.slides.test_openslide import write_svs
from tests.slides.test_patchfiles import pictures, spared_study, write_hest
from tests.slides.test_tissue import MPP, slide


@pytest.fixture
def empty(tmp_path: Path) -> Study:
    return spared_fm.open(tmp_path / "store", create=True)


def write_plain(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = slide()
    pixels[300:310, 400:410] = np.random.default_rng(seed).integers(0, 256, (10, 10, 3))
    resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), compression="jpeg", **resolution)
    return path


def test_a_plain_slide_from_image_to_embeddings(empty: Study, tmp_path: Path):
    path = write_plain(tmp_path / "s1.tif")
    [row] = empty.ingest(path)
    assert (row["genes"], row["image"], row["mpp_source"]) == (0, "fullres", "image")
    assert row["mpp"] == pytest.approx(MPP)
    found = empty.slide("s1")
    assert found.n_obs == row["spots"] > 50
    assert found.uns["spatial"]["s1"]["metadata"]["grid_spacing_um"] == 112.0
    assert slide_record(empty.layout, "s1")["counts_digest"] is None
    assert empty.ingest(path)[0]["status"] == "unchanged"
    with pytest.raises(InputError, match="other counts or spots"):
        empty.ingest(path, spacing_um=200.0)
    empty.encode("stain-bank")
    assert np.isfinite(empty.features("s1", "stain-bank")).all()
    assert np.isfinite(empty.slide("s1").obsm["stain-bank"].astype(np.float32)).all()


def test_a_slide_needs_its_mpp_and_tissue(empty: Study, tmp_path: Path):
    Image.fromarray(slide()).save(tmp_path / "s1.png")
    with pytest.raises(InputError, match="--mpp"):
        empty.ingest(tmp_path / "s1.png")
    assert empty.ingest(tmp_path / "s1.png", mpp=MPP)[0]["mpp_source"] == "given"
    Image.fromarray(slide(tissue=False)).save(tmp_path / "blank.png")
    with pytest.raises(InputError, match="no tissue"):
        empty.ingest(tmp_path / "blank.png", mpp=MPP)
    assert empty.slides == ["s1"]


def test_two_different_slides_with_the_same_name(empty: Study, tmp_path: Path):
    one, two = write_plain(tmp_path / "a" / "1.tif"), write_plain(tmp_path / "b" / "1.tif", seed=1)
    empty.ingest(one)
    with pytest.raises(InputError, match=r"slide id '1' is taken by another image .*a/1\.tif.*--slide 1_2"):
        empty.ingest(two)
    empty.ingest(two, slide="1_2")
    assert empty.slides == ["1", "1_2"]
    assert len({slide_record(empty.layout, name)["fingerprint"] for name in empty.slides}) == 2
    pixels = [
        reader.read(places) for reader, places in (patch_source(empty.layout, s, PatchSpec()) for s in empty.slides)
    ]
    assert pixels[0].shape == pixels[1].shape
    assert not np.array_equal(*pixels)


def test_a_scanners_slide(empty: Study, tmp_path: Path):
    side = 2048
    pixels = np.full((side, side, 3), 240, np.uint8)
    pixels[400:1700, 300:1800] = (200, 120, 180)
    [row] = empty.ingest(write_svs(tmp_path / "1.svs", pixels))
    assert (row["slide"], row["mpp"]) == ("1", 0.25)
    assert 3 <= row["spots"] <= 16


def test_a_study_of_spareds(empty: Study, tmp_path: Path):
    adata, patches = spared_study()
    adata.write_h5ad(tmp_path / "adata.h5ad")
    rows = empty.ingest(tmp_path / "adata.h5ad")
    assert [(row["slide"], row["image"], row["spots"]) for row in rows] == [("A", "patches", 5), ("B", "patches", 5)]
    record = slide_record(empty.layout, "B")
    width = 48 * 0.5  # an even window around a spot of 47.3 pixels of 0.5 µm
    assert record["image"]["width"] * record["mpp"] / record["image"]["scale"] == pytest.approx(width)
    spec = PatchSpec(um=width, px=24)
    reader, places = patch_source(empty.layout, "B", spec)
    np.testing.assert_array_equal(reader.read(places[[4, 1]]), patches[[9, 6]])
    with pytest.raises(InputError, match=r"slide B: its stored patches are 24 µm wide, 112 µm .*--patch-um 24"):
        check_extent("B", record, PatchSpec())
    check_extent("B", record, spec)
    [encoded] = empty.encode("stain-bank", patch_um=width, patch_px=64)
    assert np.isfinite(empty.features("A", encoded["key"])).all()


def test_patches_of_hest_are_joined_by_barcode_and_lost_ones_absent(empty: Study, tmp_path: Path):
    adata = square_slide()
    adata.write_h5ad(tmp_path / "T1.h5ad")
    order = np.random.default_rng(0).permutation(adata.n_obs)[:-1]
    patches = pictures(len(order), 224)
    path = write_hest(tmp_path / "T1.h5", patches, list(adata.obs_names[order]))
    [row] = empty.ingest(tmp_path / "T1.h5ad", image=path)
    assert row["image"] == "patches"
    assert [w for w in row["warnings"] if "1 of 16 spots have no patch" in w]
    assert [w for w in row["warnings"] if "doesn't say its mpp, 0.5 is taken" in w]
    reader, places = patch_source(empty.layout, "T1", PatchSpec())
    np.testing.assert_array_equal(reader.read(places[order]), patches)
    [encoded] = empty.encode("stain-bank")
    found = np.asarray(empty.slide("T1").obsm[encoded["key"]], np.float32)
    lost = np.setdiff1d(np.arange(16), order)
    assert np.isnan(found[lost]).all()
    assert np.isfinite(found[order]).all()


def test_patches_that_are_not_this_slides(empty: Study, tmp_path: Path):
    square_slide().write_h5ad(tmp_path / "T1.h5ad")
    path = write_hest(tmp_path / "T2.h5", pictures(2), ["x", "y"])
    with pytest.raises(InputError, match=r"T2\.h5: none of its barcodes is a spot of slide T1"):
        empty.ingest(tmp_path / "T1.h5ad", image=path)
    assert empty.slides == []
