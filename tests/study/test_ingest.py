from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from PIL import Image

import spared_fm
from spared_fm.errors import InputError
from spared_fm.study.api import Study

SLIDE = "synthetic_p1_s1"


@pytest.fixture
def source(synthetic_slides: Path, tmp_path: Path) -> Path:
    """A slide's folder that the test may damage."""
    return shutil.copytree(synthetic_slides / SLIDE, tmp_path / SLIDE)


@pytest.fixture
def empty(tmp_path: Path) -> Study:
    return spared_fm.open(tmp_path / "store", create=True)


def change(source: Path, edit: Callable[[ad.AnnData], ad.AnnData | None]) -> None:
    adata = ad.read_h5ad(source / "counts.h5ad")
    adata = edit(adata) or adata
    adata.write_h5ad(source / "counts.h5ad")


def test_a_slide_comes_back_as_it_was(empty: Study, source: Path):
    [row] = empty.ingest(source, patient="P1", split="train")
    original = ad.read_h5ad(source / "counts.h5ad")
    found = empty.slide(SLIDE)
    assert row["status"] == "added"
    assert row["spots"] == original.n_obs
    assert list(found.obs_names) == list(original.obs_names)
    np.testing.assert_array_equal(found.X.toarray(), original.X.toarray())
    np.testing.assert_array_equal(found.obsm["spatial"], original.obsm["spatial"])
    np.testing.assert_array_equal(found.layers["true_lognorm"], original.layers["true_lognorm"])
    library = found.uns["spatial"][SLIDE]
    assert library["metadata"]["um_per_px"] == pytest.approx(row["mpp"])
    assert library["metadata"]["fingerprint"].startswith("sha256")
    assert "lowres" in library["images"]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # inside scanpy
def test_scanpy_plots_it(empty: Study, source: Path):
    import matplotlib as mpl

    mpl.use("Agg")
    import scanpy as sc

    empty.ingest(source)
    adata = empty.slide(SLIDE)
    library = adata.uns["spatial"][SLIDE]
    key = next(iter(library["images"]))
    axes = sc.pl.embedding(adata, basis="spatial", color=adata.var_names[0], show=False)
    assert axes is not None
    assert library["scalefactors"][f"tissue_{key}_scalef"] > 0


def test_again_is_unchanged_and_labels_may_be_added(empty: Study, source: Path):
    empty.ingest(source)
    assert empty.ingest(source)[0]["status"] == "unchanged"
    [row] = empty.ingest(source, patient="P9", split="test")
    assert (row["status"], row["patient"], row["split"]) == ("updated", "P9", "test")
    assert empty.ingest(source)[0]["patient"] == "P9"


def test_an_id_taken_by_another_image(empty: Study, source: Path, synthetic_slides: Path):
    empty.ingest(source)
    with pytest.raises(InputError, match=f"{SLIDE}.*taken by another image.*--slide {SLIDE}_2"):
        empty.ingest(synthetic_slides / "synthetic_p2_s3", slide=SLIDE)
    assert empty.ingest(synthetic_slides / "synthetic_p2_s3", slide=f"{SLIDE}_2")[0]["status"] == "added"


def test_an_id_taken_by_other_counts_or_another_scale(empty: Study, source: Path):
    empty.ingest(source)
    with pytest.raises(InputError, match="ingested at"):
        empty.ingest(source, mpp=0.9)

    def edit(adata: ad.AnnData) -> None:
        adata.X[0, 0] += 1

    change(source, edit)
    with pytest.raises(InputError, match="other counts or spots"):
        empty.ingest(source)


def nothing_left(study: Study) -> bool:
    return study.slides == [] and study.layout.files.list(".staging") == []


def duplicate(adata: ad.AnnData) -> None:
    adata.obs_names = [adata.obs_names[0], *adata.obs_names[:-1]]


def nan_counts(adata: ad.AnnData) -> None:
    adata.X = adata.X.astype(np.float32)
    adata.X.data[3] = np.nan


def negative_counts(adata: ad.AnnData) -> None:
    adata.X.data[3] = -1


def far_spot(adata: ad.AnnData) -> None:
    adata.obsm["spatial"][0] = [1e5, 10]


def no_scale(adata: ad.AnnData) -> ad.AnnData:
    bare = adata.copy()
    bare.uns = {}
    del bare.obs["array_row"], bare.obs["array_col"]
    return bare


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (duplicate, r"counts\.h5ad.*barcode"),
        (nan_counts, r"counts\.h5ad.*(NaN|finite)"),
        (negative_counts, r"counts\.h5ad.*negative"),
        (far_spot, r"image\.jpg"),
        (no_scale, "--mpp"),
    ],
)
def test_bad_counts_leave_nothing_behind(empty: Study, source: Path, edit: Callable, message: str):
    change(source, edit)
    with pytest.raises(InputError, match=f"(?s){message}"):
        empty.ingest(source)
    assert nothing_left(empty)


def test_no_scale_is_mended_by_mpp(empty: Study, source: Path):
    change(source, no_scale)
    [row] = empty.ingest(source, mpp=0.7)
    assert (row["mpp"], row["mpp_source"]) == (0.7, "given")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_images_leave_nothing_behind(empty: Study, source: Path, damage: str):
    image = source / "image.jpg"
    whole = image.read_bytes()
    image.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not an image"}[damage])
    with pytest.raises(InputError, match=r"image\.jpg"):
        empty.ingest(source)
    assert nothing_left(empty)


def test_an_image_smaller_than_the_spots(empty: Study, source: Path):
    Image.new("RGB", (64, 64)).save(source / "image.jpg")
    with pytest.raises(InputError, match=r"image\.jpg.*64"):
        empty.ingest(source)
    assert nothing_left(empty)


def test_counts_only(empty: Study, source: Path, tmp_path: Path):
    adata = ad.read_h5ad(source / "counts.h5ad")
    adata.write_h5ad(tmp_path / "only.h5ad")
    [row] = empty.ingest(tmp_path / "only.h5ad")
    assert row["image"] is None
    with pytest.raises(InputError, match="counts only"):
        empty.encode("stain-bank", slides=row["slide"])
    with pytest.raises(InputError, match="no slides with an image"):
        empty.encode("stain-bank")


def test_bad_labels(empty: Study, source: Path):
    with pytest.raises(InputError, match="train, val, test"):
        empty.ingest(source, split="trian")
    with pytest.raises(InputError, match="--slide a-b"):
        empty.ingest(source, slide="a/b")
    with pytest.raises(InputError, match="absent"):
        empty.ingest(source.parent / "absent")


def test_the_real_layouts(empty: Study, shared_data: Path):
    rows = {row["slide"]: row for folder in sorted(shared_data.glob("spaceranger/*")) for row in empty.ingest(folder)}
    assert (rows["crc16_complete"]["spots"], rows["crc16_complete"]["genes"]) == (3106, 36601)
    assert {row["image"] for row in rows.values()} == {"hires", "lowres"}
    assert all(row["mpp_source"] == "array" for row in rows.values())
