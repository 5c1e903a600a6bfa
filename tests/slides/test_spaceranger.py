from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.slides.counts import read_slides
from spared_fm.slides.images import open_image
from spared_fm.slides.mpp import resolve_mpp
from spared_fm.slides.patches import PatchReader, PatchSpec
from tests.slides.layouts import (
    GENE_IDS,
    GENES,
    PITCH_PX,
    hex_spots,
    poisson_counts,
    smooth_image,
    write_10x_h5,
    write_outs,
)

if TYPE_CHECKING:
    from pathlib import Path

SPOTS = hex_spots()
UNDER = SPOTS[SPOTS["in_tissue"] == 1].sort_values("barcode", ascending=False)
COUNTS = poisson_counts(len(UNDER), len(GENES))


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_slides(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("matrix", ["h5", "mtx"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_and_matrix(version: int, matrix: str, tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "patient7", version=version, matrix=matrix)
    (slide,) = read_slides(outs)
    adata = slide.adata
    assert slide.id == "patient7"
    assert adata.obs_names.tolist() == UNDER["barcode"].tolist()
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.int32
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    xy = UNDER[["x", "y"]].to_numpy()  # joined by barcode: the two files are in different orders
    np.testing.assert_allclose(adata.obsm["spatial"], xy if version == 3 else np.rint(xy))
    for column in ("in_tissue", "array_row", "array_col"):
        assert adata.obs[column].tolist() == UNDER[column].tolist()
    assert adata.var["gene_ids"].tolist() == GENE_IDS
    missing = "NA" if matrix == "h5" else GENE_IDS[3]  # the MTX reader takes a gene called NA for no name
    assert adata.var_names.tolist() == ["ACTB", "TBCE", "TBCE-1", missing, "ERBB2"]
    assert slide.mpp_candidates == {"array": pytest.approx(100 / PITCH_PX, rel=0.02)}
    assert slide.scalefactors["tissue_hires_scalef"] == 0.5
    assert slide.patient is None
    adata.write_h5ad(tmp_path / "again.h5ad")


@pytest.mark.parametrize(
    ("images", "kind", "scale"),
    [(("hires", "lowres"), "hires", 0.5), (("lowres",), "lowres", 0.15), ((), "none", 1.0)],
)
def test_the_best_image_there_is(images: tuple[str, ...], kind: str, scale: float, tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s", images=images)
    (slide,) = read_slides(outs)
    assert (slide.image_kind, slide.image_scale) == (kind, scale)
    assert slide.image == (outs / "spatial" / f"tissue_{kind}_image.png" if images else None)
    assert set(slide.thumbnails) == set(images)
    for name, thumb in slide.thumbnails.items():
        assert thumb.shape[1] == round(400 * {"hires": 0.5, "lowres": 0.15}[name])
        assert thumb.dtype == np.uint8


def test_the_full_resolution_image_by_option(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    full = tmp_path / "scan.png"
    Image.fromarray(smooth_image(400, 360)).save(full)
    (slide,) = read_slides(outs, image=full)
    assert (slide.image, slide.image_kind, slide.image_scale) == (full, "fullres", 1.0)
    assert set(slide.thumbnails) == {"hires"}
    small = tmp_path / "small.png"
    Image.fromarray(smooth_image(200, 180)).save(small)
    refused(outs, r"small\.png: the image is 200×180 .*lie outside", image=small)


def test_patches_from_hires_lie_where_the_full_resolution_ones_do(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s", version=3)
    big = smooth_image(400, 360)
    Image.fromarray(big).save(tmp_path / "scan.png")
    Image.fromarray(np.asarray(Image.fromarray(big).reduce(2))).save(outs / "spatial" / "tissue_hires_image.png")
    patches = []
    for image in (tmp_path / "scan.png", None):
        (slide,) = read_slides(outs, image=image)
        mpp = resolve_mpp(slide.id, **slide.mpp_candidates).value
        with open_image(slide.image) as reader:
            cut = PatchReader(reader, mpp, PatchSpec(um=100, px=50), scale=slide.image_scale)
            assert cut.upsample == pytest.approx(mpp / 2.0 / slide.image_scale)
            patches.append(cut.read(slide.adata.obsm["spatial"]).astype(int))
    assert np.abs(patches[0] - patches[1]).mean() < 2


def test_id_and_where_to_point(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "sample_3")
    assert read_slides(tmp_path / "sample_3")[0].id == "sample_3"
    assert read_slides(outs, slide="mine")[0].id == "mine"
    renamed = outs.rename(tmp_path / "unpacked")
    assert read_slides(renamed)[0].id == "unpacked"
    matrix = renamed / "filtered_feature_bc_matrix.h5"
    matrix.rename(renamed / "V1_Human_Heart_filtered_feature_bc_matrix.h5")  # as 10x's downloads are called
    assert read_slides(renamed)[0].adata.n_obs == len(UNDER)


def test_spots_beside_the_tissue(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s", images=())
    everything = poisson_counts(len(SPOTS), len(GENES))
    spots = SPOTS[::-1]  # those beside the tissue first
    write_10x_h5(outs / "filtered_feature_bc_matrix.h5", everything, spots["barcode"].tolist())
    (under,) = read_slides(outs)
    assert sorted(under.adata.obs_names) == sorted(UNDER["barcode"])
    np.testing.assert_array_equal(under.adata.X.toarray(), everything[spots["in_tissue"] == 1])
    (all_spots,) = read_slides(outs, positions_in_tissue_only=False)
    assert all_spots.adata.obs_names.tolist() == spots["barcode"].tolist()


def edit_positions(outs: Path, change: Any) -> None:
    path = outs / "spatial" / "tissue_positions_list.csv"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: [r.replace("-1,", "-2,", 1) for r in rows],
            r"25 of the 25 barcodes of .*have no position",
        ),
        (lambda rows: rows[3:], r"3 of the 25 barcodes of .*have no position, e\.g\. 'SPOT0002-1'"),
        (lambda rows: [*rows, rows[0]], "1 barcodes occur more than once"),
        (lambda rows: [], "not a table of spot positions"),
        (lambda rows: [r.rsplit(",", 1)[0] for r in rows], "not a table of spot positions"),
        (lambda rows: [f"{r},7" for r in rows], "not a table of spot positions"),
        (lambda rows: [r.replace(",1,", ",yes,", 1) for r in rows], "not a table of spot positions"),
        (
            lambda rows: [rows[0].rsplit(",", 1)[0] + ",", *rows[1:]],
            r"1 spots have coordinates .*'SPOT0000-1'",
        ),
        (lambda rows: [rows[0].rsplit(",", 1)[0] + ",inf", *rows[1:]], "1 spots have coordinates"),
        (lambda rows: [r.replace(",1,", ",0,", 1) for r in rows], "in_tissue is 1 for no spot"),
    ],
)
def test_wrong_positions_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    edit_positions(outs, change)
    refused(outs, rf"tissue_positions_list\.csv: .*{message}")


def test_spots_outside_the_hires_image_are_refused(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    Image.fromarray(smooth_image(90, 180)).save(outs / "spatial" / "tissue_hires_image.png")
    refused(outs, r"tissue_hires_image\.png: the image is 90×180")


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    factors = outs / "spatial" / "scalefactors_json.json"
    kept = factors.read_text()
    factors.write_text("{")
    refused(outs, r"scalefactors_json\.json: not scale factors")
    factors.write_text(json.dumps({"tissue_lowres_scalef": 0.1}))
    refused(outs, r"scalefactors_json\.json: no tissue_hires_scalef for tissue_hires_image\.png")
    factors.unlink()
    refused(outs, r"no tissue_hires_scalef")
    full = tmp_path / "scan.png"
    Image.fromarray(smooth_image(400, 360)).save(full)
    assert read_slides(outs, image=full)[0].scalefactors == {}
    factors.write_text(kept)
    (outs / "spatial" / "tissue_hires_image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(outs, r"tissue_hires_image\.png: the image is damaged")
    (outs / "spatial" / "tissue_positions_list.csv").unlink()
    refused(outs, r"no spot positions, looked for tissue_positions\.csv, tissue_positions_list\.csv")


@pytest.mark.parametrize("content", [b"", b"no hdf5", "cut", "other"])
def test_a_broken_matrix_is_refused(content: bytes | str, tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    path = outs / "filtered_feature_bc_matrix.h5"
    if content == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif content == "other":
        import h5py

        with h5py.File(path, "w") as file:
            file["matrix/shape"] = [3, 4]
    else:
        path.write_bytes(content)
    refused(outs, r"filtered_feature_bc_matrix\.h5: not a readable 10x count matrix")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("features.tsv.gz", None, "incomplete"),
        ("matrix.mtx.gz", None, "incomplete|not a readable"),
        ("barcodes.tsv.gz", gzip.compress(b"ONE-1\n", mtime=0), "not a readable"),
        ("matrix.mtx.gz", b"\x1f\x8b\x08\x00cut", "not a readable"),
        ("matrix.mtx.gz", gzip.compress(b"hello", mtime=0), "not a readable"),
    ],
)
def test_a_broken_mtx_folder_is_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s", matrix="mtx")
    path = outs / "filtered_feature_bc_matrix" / name
    path.unlink() if content is None else path.write_bytes(content)
    refused(outs, rf"filtered_feature_bc_matrix: .*({message})")


def test_wrong_counts_are_refused(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    barcodes = UNDER["barcode"].tolist()
    for counts, message in (
        (np.where(np.arange(5) == 2, -1, COUNTS), r"25 counts are negative, e\.g\. gene 'TBCE'"),
        (np.where(np.arange(5) == 2, np.nan, COUNTS), "25 counts are NaN"),
        (COUNTS * 0, "zeros only"),
    ):
        write_10x_h5(outs / "filtered_feature_bc_matrix.h5", counts, barcodes)
        refused(outs, rf"filtered_feature_bc_matrix\.h5: .*{message}")
    write_10x_h5(outs / "filtered_feature_bc_matrix.h5", COUNTS, [barcodes[1], *barcodes[1:]])
    refused(outs, r"filtered_feature_bc_matrix\.h5: 1 barcodes occur more than once")


def test_a_folder_with_half_the_layout_is_refused(tmp_path: Path) -> None:
    outs = write_outs(tmp_path / "s")
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    refused(outs, "no slide here: looked for .*filtered_feature_bc_matrix")


def test_real_crc16(shared_data: Path) -> None:
    (slide,) = read_slides(shared_data / "spaceranger" / "crc16_complete" / "outs")
    assert slide.id == "crc16_complete"
    assert slide.adata.shape == (3106, 36_601)
    assert slide.adata.X.dtype == np.int32
    assert slide.adata.var_names.is_unique
    assert (slide.image_kind, slide.image_scale) == ("hires", pytest.approx(0.286, abs=1e-4))
    mpp = resolve_mpp(slide.id, **slide.mpp_candidates)
    assert (mpp.source, mpp.value) == ("array", pytest.approx(1.30, rel=0.02))
    with open_image(slide.image) as image:
        cut = PatchReader(image, mpp.value, PatchSpec(), scale=slide.image_scale)
        assert cut.upsample == pytest.approx(9.0, rel=0.02)
        assert cut.achieved_mpp == pytest.approx(0.5)
        patches = cut.read(slide.adata.obsm["spatial"][:50])
    assert patches.std() > 5


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [("scanpy_fixture_v1.0.0", (100, 100), "hires"), ("perik_sr3_mtx", (2898, 19_465), "lowres")],
)
def test_real_layouts(name: str, shape: tuple[int, int], kind: str, shared_data: Path) -> None:
    (slide,) = read_slides(shared_data / "spaceranger" / name)
    assert slide.id == name
    assert slide.adata.shape == shape
    assert slide.image_kind == kind
    assert set(slide.mpp_candidates) == {"array"}
    assert slide.adata.obs["in_tissue"].eq(1).all()
