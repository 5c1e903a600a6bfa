from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.slides.checks import check_slide_id, raw_counts
from spared_fm.slides.counts import read_slides
from spared_fm.slides.mpp import resolve_mpp
from tests.slides.layouts import smooth_image, square_slide, write_folder

if TYPE_CHECKING:
    from pathlib import Path


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_slides(path, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_with_counts_and_image(tmp_path: Path) -> None:
    source = square_slide()
    source.obs["annotation"] = pd.Categorical(["a"] * 16, categories=["a", "b"])
    (slide,) = read_slides(write_folder(tmp_path / "mine", source))
    assert slide.id == "mine"
    assert slide.image == tmp_path / "mine" / "image.jpg"
    assert (slide.image_kind, slide.image_scale) == ("fullres", 1.0)
    assert slide.patient == "P"
    assert slide.metadata == {
        "um_per_px": 0.8, "spot_pitch_um": 200.0, "spot_diameter_um": 100.0, "patient": "P",
    }  # fmt: skip
    assert {k: type(v) for k, v in slide.metadata.items()} == {
        "um_per_px": float, "spot_pitch_um": float, "spot_diameter_um": float, "patient": str,
    }  # fmt: skip
    assert slide.scalefactors == {"spot_diameter_fullres": 125.0, "tissue_hires_scalef": 0.06}
    assert slide.mpp_candidates == {name: pytest.approx(0.8) for name in ("metadata", "array", "spot")}
    assert slide.warnings == ()
    adata = slide.adata
    assert adata.obs_names.tolist() == source.obs_names.tolist()
    assert {"in_tissue", "array_row", "array_col", "annotation"} <= set(adata.obs)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.int32
    np.testing.assert_array_equal(adata.X.toarray(), source.X.toarray())
    assert adata.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(adata.obsm["spatial"], source.obsm["spatial"])
    assert not adata.uns
    np.testing.assert_array_equal(slide.thumbnails["hires"], smooth_image(60, 50))
    adata.write_h5ad(tmp_path / "again.h5ad")  # what comes out can be written


def test_layers_come_along_and_foreign_parts_stay_behind(tmp_path: Path) -> None:
    source = square_slide()
    source.layers["log1p"] = source.X.toarray().astype(float)
    source.obsm["X_pca"] = np.zeros((16, 2))
    source.uns["colours"] = ["red"]
    source.raw = source.copy()
    (slide,) = read_slides(write_folder(tmp_path / "s", source))
    assert (list(slide.adata.layers), list(slide.adata.obsm), slide.adata.raw) == (["log1p"], ["spatial"], None)
    assert not slide.adata.uns


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda x: x, np.int32),
        (lambda x: x.toarray(), np.int32),
        (lambda x: x.astype(np.float32), np.int32),
        (lambda x: x.astype(np.float64).tocsc(), np.int32),
        (lambda x: x.astype(np.int64) * 3_000_000_000, np.int64),
        (lambda x: x.astype(np.float64) * 0.25, np.float32),
        (lambda x: x > 0, np.int32),
    ],
)
def test_counts_of_any_form_become_csr(convert: Any, dtype: type, tmp_path: Path) -> None:
    source = square_slide()
    wanted = convert(source.X)
    source.X = wanted
    source.write_h5ad(tmp_path / "s.h5ad")
    (slide,) = read_slides(tmp_path / "s.h5ad")
    dense = wanted.toarray() if sparse.issparse(wanted) else wanted
    assert isinstance(slide.adata.X, sparse.csr_matrix)
    assert slide.adata.X.dtype == dtype
    np.testing.assert_array_equal(slide.adata.X.toarray(), dense)
    assert bool(slide.warnings) == (dtype == np.float32)


def test_raw_counts_are_taken_from_the_layer_when_x_is_normalised(tmp_path: Path) -> None:
    source = square_slide()
    source.layers["counts"] = source.X.copy()
    source.X = source.X.astype(np.float32) * 0.37
    source.write_h5ad(tmp_path / "s.h5ad")
    (slide,) = read_slides(tmp_path / "s.h5ad")
    np.testing.assert_array_equal(slide.adata.X.toarray(), source.layers["counts"].toarray())
    assert "layers['counts']" in slide.warnings[0]


def test_gene_names_become_unique_and_ids_stay(tmp_path: Path) -> None:
    source = square_slide()
    source.var_names = ["A", "B", "B", "B", "C"]
    source.var["gene_ids"] = [f"E{i}" for i in range(5)]
    source.write_h5ad(tmp_path / "s.h5ad")
    (slide,) = read_slides(tmp_path / "s.h5ad")
    assert slide.adata.var_names.tolist() == ["A", "B", "B-1", "B-2", "C"]
    assert slide.adata.var["gene_ids"].tolist() == [f"E{i}" for i in range(5)]


def test_counts_alone_may_lack_coordinates(tmp_path: Path) -> None:
    source = square_slide()
    del source.obsm["spatial"], source.uns["spatial"]
    source.write_h5ad(tmp_path / "only.h5ad")
    (slide,) = read_slides(tmp_path / "only.h5ad")
    assert slide.id == "only"
    assert (slide.image, slide.image_kind, slide.mpp_candidates) == (None, "none", {})
    assert "spatial" not in slide.adata.obsm
    refused(write_folder(tmp_path / "folder", source), r"counts\.h5ad: an image but no obsm\['spatial'\]")


def test_a_folder_without_image_is_counts_only(tmp_path: Path) -> None:
    (write_folder(tmp_path / "s") / "image.jpg").unlink()
    (slide,) = read_slides(tmp_path / "s")
    assert (slide.image, slide.image_kind) == (None, "none")
    assert slide.mpp_candidates


def test_image_option_wins_over_image_beside(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s")
    other = tmp_path / "scan.png"
    Image.fromarray(smooth_image(900, 950)).save(other)
    assert read_slides(folder, image=other)[0].image == other
    Image.fromarray(smooth_image(900, 950)).save(folder / "image.png")
    refused(folder, r"several images \(image\.jpg, image\.png\)")
    assert read_slides(folder, image=folder / "image.png")[0].image == folder / "image.png"


def several(tmp_path: Path) -> Path:
    parts = [square_slide(), square_slide(3, seed=7), square_slide(seed=8)]
    for part, (slide_id, patient) in zip(parts, (("B2", "B"), ("A1", "A"), ("A2", "A")), strict=True):
        part.obs["slide_id"], part.obs["patient"] = slide_id, patient
    joined = ad.concat(parts)  # barcodes repeat across slides
    joined.obs["patient"] = joined.obs["patient"].astype("category")
    joined.uns["spatial"] = {"A1": {"metadata": {"um_per_px": 0.81}}}
    joined.write_h5ad(tmp_path / "many.h5ad")
    return tmp_path / "many.h5ad"


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_several_slides_by_their_column(tmp_path: Path) -> None:
    path = several(tmp_path)
    slides = read_slides(path)
    assert [(s.id, s.patient, s.adata.n_obs) for s in slides] == [
        ("B2", "B", 16),
        ("A1", "A", 9),
        ("A2", "A", 16),
    ]
    assert slides[0].adata.obs["patient"].cat.categories.tolist() == ["B"]
    assert ["metadata" in s.mpp_candidates for s in slides] == [False, True, False]
    (one,) = read_slides(path, slide="A1")
    np.testing.assert_array_equal(one.adata.X.toarray(), square_slide(3, seed=7).X.toarray())
    refused(path, r"many\.h5ad: no slide 'C9'.*B2, A1, A2", slide="C9")
    image = tmp_path / "scan.png"
    Image.fromarray(smooth_image(1000, 1000)).save(image)
    refused(path, "3 slides for the one image", image=image)
    assert read_slides(path, image=image, slide="A1")[0].image == image


def test_the_column_of_a_single_slide_names_it_unless_told(tmp_path: Path) -> None:
    source = square_slide()
    source.obs["slide_id"] = "C2"
    source.write_h5ad(tmp_path / "x.h5ad")
    assert read_slides(tmp_path / "x.h5ad")[0].id == "C2"
    assert read_slides(tmp_path / "x.h5ad", slide="mine")[0].id == "mine"


def test_ids_that_cannot_be_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "my slide (1)")
    refused(folder, r"slide id 'my slide \(1\)': .*--slide my-slide-1")
    assert read_slides(folder, slide="my-slide-1")[0].id == "my-slide-1"


@settings(deadline=None)
@given(st.text(min_size=0, max_size=20))
def test_a_suggested_id_is_always_accepted(text: str) -> None:
    try:
        assert check_slide_id(text) == text
    except InputError as error:
        suggestion = str(error).rsplit("--slide ", 1)[1]
        assert check_slide_id(suggestion) == suggestion


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a b", "__x", "é", "a\nb", "a:b"])
def test_ids_zarr_would_not_take(bad: str) -> None:
    with pytest.raises(InputError):
        check_slide_id(bad)


def change(what: str) -> ad.AnnData:
    source = square_slide()
    dense = source.X.toarray().astype(np.float64)
    match what:
        case "nan":
            dense[3, 2] = np.nan
        case "infinite":
            dense[3, 2] = np.inf
        case "negative":
            dense[3, 2] = -1
        case "zeros":
            dense[:] = 0
        case "no spots":
            return source[:0].copy()
        case "no genes":
            return source[:, :0].copy()
        case "coordinates":
            source.obsm["spatial"][5] = np.nan
        case "three axes":
            source.obsm["spatial"] = np.zeros((16, 3))
        case "two patients":
            source.obs["patient"] = ["a"] * 8 + ["b"] * 8
        case "no id":
            source.obs["slide_id"] = ["a"] * 15 + [None]
    source.X = sparse.csr_matrix(dense)
    return source


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", r"1 counts are NaN, e\.g\. gene 'G2' at spot '0x3'"),
        ("infinite", r"1 counts are infinite, e\.g\. gene 'G2' at spot '0x3'"),
        ("negative", r"1 counts are negative, e\.g\. gene 'G2' at spot '0x3'"),
        ("zeros", "zeros only"),
        ("no spots", r"empty \(0 spots × 5 genes\)"),
        ("no genes", r"empty \(16 spots × 0 genes\)"),
        ("coordinates", r"1 spots have coordinates that are not finite, e\.g\. '1x1'"),
        ("three axes", r"coordinates of shape \(16, 3\)"),
        ("two patients", r"slide \w+ has several patients \(a, b\)"),
        ("no id", "1 spots have no slide_id"),
    ],
)
def test_wrong_content_is_refused_by_file_and_place(what: str, message: str, tmp_path: Path) -> None:
    refused(write_folder(tmp_path / "s", change(what)), rf"counts\.h5ad: .*{message}")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_duplicate_barcodes_are_refused(tmp_path: Path) -> None:
    source = square_slide()
    source.obs_names = ["same", "same", *source.obs_names[2:]]
    refused(write_folder(tmp_path / "s", source), r"counts\.h5ad: 1 barcodes occur more than once, e\.g\. 'same'")


def test_an_image_the_spots_do_not_fit_in_is_refused(tmp_path: Path) -> None:
    # the furthest spot is at (850, 900), so its pixel needs 851 × 901
    assert read_slides(write_folder(tmp_path / "fits", size=(851, 901)))
    folder = write_folder(tmp_path / "small", size=(840, 950))
    refused(folder, r"image\.jpg: the image is 840×950 pixels, .*\(850, 900\) in it; 4 of 16 lie outside")
    source = square_slide()
    source.obsm["spatial"] -= 200
    refused(write_folder(tmp_path / "left", source), r"image\.jpg: .*\(-100, -50\) to \(650, 700\)")


def test_a_broken_image_beside_the_counts_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s")
    (folder / "image.jpg").write_bytes(b"")
    refused(folder, r"image\.jpg: the image is empty")
    refused(folder, r"gone\.tif: no such image", image=tmp_path / "gone.tif")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "other hdf5"])
def test_a_broken_h5ad_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.h5ad"
    square_slide().write_h5ad(path)
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("barcode,gene\n")
        case "cut":
            path.write_bytes(path.read_bytes()[:4000])
        case "other hdf5":
            pd.DataFrame({"a": [1]}).to_csv(path)
            import h5py

            with h5py.File(path, "w") as file:
                file["matrix/data"] = [1, 2]
    refused(path, r"bad\.h5ad: ")


def test_paths_that_are_no_slide(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "gone: no such file or folder")
    refused(tmp_path, r"no slide here: looked for counts\.h5ad .*spatial/")
    (tmp_path / "a.csv").write_text("x")
    refused(tmp_path / "a.csv", r"a\.csv: not an \.h5ad")


@settings(deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**31),
    st.sampled_from(["int16", "float32", "bool", "uint8"]),
)
def test_raw_counts_keep_every_value_and_leave_the_source_alone(n: int, m: int, seed: int, dtype: str) -> None:
    dense = np.random.default_rng(seed).integers(0, 3, (n, m)).astype(dtype)
    dense[0, 0] = 1
    plain = sparse.coo_matrix(dense)
    where = np.r_[plain.row[::-1], 0], np.r_[plain.col[::-1], m - 1]  # unsorted, with a stored zero
    source = sparse.csr_matrix((np.r_[plain.data[::-1], 0].astype(dtype), where), (n, m))
    source.has_sorted_indices = False
    stored = source.data.copy(), source.indices.copy()
    spots, genes = pd.Index([f"s{i}" for i in range(n)]), pd.Index([f"g{i}" for i in range(m)])
    found = raw_counts(source, spots, genes, "file")
    np.testing.assert_array_equal(found.toarray(), dense)
    assert found.has_sorted_indices
    assert (found.data != 0).all()
    assert all(np.array_equal(a, b) for a, b in zip(stored, (source.data, source.indices), strict=True))


REAL = ["her2st_C2", "her2st_C3", "her2st_C4", "mob_rep1", "mob_rep11", "mob_rep12"]


@pytest.mark.parametrize("name", REAL)
def test_real_slides(name: str, shared_data: Path) -> None:
    (slide,) = read_slides(shared_data / name)
    assert slide.id == name
    assert slide.image_kind == "fullres"
    assert slide.patient == ("C" if name.startswith("her2st") else None)
    assert set(slide.mpp_candidates) == {"metadata", "array", "spot"}
    mpp = resolve_mpp(slide.id, **slide.mpp_candidates)
    assert mpp.source == "metadata"
    assert mpp.warnings == ()  # the array agrees within 3 %
    assert mpp.value == pytest.approx(0.69 if name.startswith("her2st") else 2.75, rel=0.01)
    assert slide.adata.X.dtype == np.int32
    assert set(slide.thumbnails) == {"hires", "lowres"}
    assert slide.adata.n_obs > 170


def test_real_file_of_many_slides(shared_data: Path) -> None:
    slides = read_slides(shared_data / "her2st_counts.h5ad")
    assert len(slides) == 22
    assert sum(s.adata.n_obs for s in slides) == 8452
    assert {s.adata.n_vars for s in slides} == {12_405}
    patients = pd.Series([s.patient for s in slides]).value_counts().to_dict()
    assert patients == {"A": 6, "C": 4, "D": 6, "E": 3, "F": 3}
    assert all(s.image is None and set(s.mpp_candidates) == {"array"} for s in slides)
    assert all(s.adata.obsm["spatial"].dtype == np.float64 for s in slides)
