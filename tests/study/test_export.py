from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.study import export_forms
from spared_fm.study.api import Study
from spared_fm.study.export import export
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"
ABSENT = {3: "torn", 20: "no pixels"}


@pytest.fixture
def torn(copy: Callable[[], Study]) -> Study:
    """The study with two absent spots in one slide."""
    study = copy()
    array = EmbeddingArray(study.layout, SLIDE, ENCODER)
    values = np.array(array.read())
    study.layout.files.remove(f"{array.node}/receipts")
    study.layout.files.remove(f"{array.node}/c")
    for k in range(array.n_chunks):
        rows = array.rows(k)
        here = {row: reason for row, reason in ABSENT.items() if row in rows}
        EmbeddingArray(study.layout, SLIDE, ENCODER).write_chunk(
            k, values[rows.start : rows.stop], absent=here, device="test"
        )
    return study


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_h5ad(torn: Study, out: Path):
    rows = export(torn.layout, encoder=ENCODER, to=out / "new" / "folder")
    assert [row["slide"] for row in rows] == torn.slides
    assert written(out / "new" / "folder") == [f"{slide}.h5ad" for slide in torn.slides]
    for row in rows:
        ours, theirs = torn.slide(row["slide"]), ad.read_h5ad(row["path"])
        assert list(theirs.obs_names) == list(ours.obs_names)
        pd.testing.assert_frame_equal(theirs.var, ours.var)
        assert (theirs.X != ours.X).nnz == 0
        np.testing.assert_array_equal(theirs.obsm["spatial"], ours.obsm["spatial"])
        vectors = theirs.obsm[ENCODER]
        assert vectors.dtype == np.float16
        np.testing.assert_array_equal(vectors, torn.features(row["slide"], ENCODER))
        assert row["slide"] in theirs.uns["spatial"]
        array = EmbeddingArray(torn.layout, row["slide"], ENCODER)
        told = theirs.uns[export_forms.PROVENANCE]
        assert json.loads(told["recipe"]) == array.recipe.as_dict()
        assert told["recipe_id"] == array.recipe.id
        assert row["bytes"] == Path(row["path"]).stat().st_size
        assert (row["spots"], row["dim"]) == vectors.shape
    assert rows[0]["absent"] == len(ABSENT)
    assert np.isnan(ad.read_h5ad(rows[0]["path"]).obsm[ENCODER]).all(axis=1).nonzero()[0].tolist() == sorted(ABSENT)


def test_h5ad_of_a_cohort(study: Study, out: Path):
    rows = export(study.layout, encoder=ENCODER, to=out, cohort="c", layer="lognorm")
    whole = study.cohort_data("c")
    assert sum(row["spots"] for row in rows) == whole.n_obs
    for row in rows:
        part, theirs = whole[whole.obs["slide"] == row["slide"]], ad.read_h5ad(row["path"])
        assert list(theirs.obs_names) == list(part.obs_names)
        assert list(theirs.var_names) == list(whole.var_names)
        np.testing.assert_array_equal(theirs.X, part.layers["lognorm"])
        assert set(theirs.layers) == set(whole.layers)
        at = study.slide(row["slide"]).obs_names.get_indexer(part.obs["barcode"])
        np.testing.assert_array_equal(theirs.obsm[ENCODER], study.features(row["slide"], ENCODER, at))
        np.testing.assert_array_equal(theirs.obsm["spatial"], part.obsm["spatial"])
    [row] = export(study.layout, SLIDE, encoder=ENCODER, to=out / "counts", cohort="c")
    part = whole[whole.obs["slide"] == SLIDE]
    np.testing.assert_array_equal(ad.read_h5ad(row["path"]).X, part.layers["counts"])


def test_a_cohorts_spots_in_another_order(study: Study):
    whole = study.cohort_data("c")
    order = np.random.default_rng(0).permutation(whole.n_obs)[: whole.n_obs // 2]
    array = EmbeddingArray(study.layout, SLIDE, ENCODER)
    source = export_forms.Source(array, whole[order], None)
    names = source.adata().obs["barcode"]
    found = np.concatenate([values for _, values in source.blocks()])
    assert len(found) == len(names) < array.shape[0]
    for name, vector in zip(names, found, strict=True):
        row = study.slide(SLIDE).obs_names.get_loc(name)
        np.testing.assert_array_equal(vector, study.features(SLIDE, ENCODER, np.array([row]))[0])


def test_trident(torn: Study, out: Path):
    [row] = export(torn.layout, SLIDE, encoder=ENCODER, to=out, form="trident")
    record = torn.layout.attributes(torn.layout.slide(SLIDE))
    assert record is not None
    adata = torn.slide(SLIDE)
    kept = np.setdiff1d(np.arange(adata.n_obs), list(ABSENT))
    with h5py.File(row["path"]) as file:
        assert set(file) == {"features", "coords"}  # others are not looked for, and some readers stumble over them
        features, coords, attributes = file["features"][:], file["coords"][:], dict(file["coords"].attrs)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, torn.features(SLIDE, ENCODER, kept))
    assert coords.dtype == np.int64
    side = attributes["patch_size_level0"]
    assert side == round(112 / record["mpp"])
    np.testing.assert_allclose(coords + side / 2, adata.obsm["spatial"][kept] + 0.5, atol=0.51)
    assert attributes["patch_size"] == 224
    # what TRIDENT computes the side from
    from_mag, to_mag = attributes["level0_magnification"], attributes["target_magnification"]
    assert attributes["patch_size"] * from_mag / to_mag == pytest.approx(112 / record["mpp"])
    assert to_mag == pytest.approx(20)
    assert (row["spots"], row["absent"]) == (len(kept), len(ABSENT))


def test_trident_counts_the_pixels_of_the_image(torn: Study, out: Path):
    node = torn.layout.slide(SLIDE)
    record = torn.layout.attributes(node)
    assert record is not None
    [fine] = export(torn.layout, SLIDE, encoder=ENCODER, to=out / "fine", form="trident")
    torn.layout.update_attributes(node, lambda _: {**record, "image": {**record["image"], "scale": 0.25}})
    [coarse] = export(torn.layout, SLIDE, encoder=ENCODER, to=out / "coarse", form="trident")
    with h5py.File(fine["path"]) as one, h5py.File(coarse["path"]) as other:
        np.testing.assert_allclose(one["coords"][:] / 4, other["coords"][:], atol=0.75)
        assert one["coords"].attrs["patch_size_level0"] / 4 == pytest.approx(
            other["coords"].attrs["patch_size_level0"], abs=0.75
        )


def test_npy(torn: Study, out: Path):
    [row] = export(torn.layout, SLIDE, encoder=ENCODER, to=out, form="npy")
    assert written(out) == [f"{SLIDE}.npy", f"{SLIDE}.parquet"]
    vectors, ids = np.load(row["path"]), pd.read_parquet(out / f"{SLIDE}.parquet")
    np.testing.assert_array_equal(vectors, torn.features(SLIDE, ENCODER))
    adata = torn.slide(SLIDE)
    assert list(ids["barcode"]) == list(adata.obs_names)
    np.testing.assert_array_equal(ids[["x", "y"]], adata.obsm["spatial"])
    assert ids["absent"].dropna().to_dict() == ABSENT
    assert set(ids["slide"]) == {SLIDE}


@pytest.mark.skipif(importlib.util.find_spec("spatialdata") is None, reason="spatialdata is not installed")
@pytest.mark.filterwarnings("ignore:::(?!spared_fm)")  # its own packages' warnings are not ours
def test_spatialdata(torn: Study, out: Path):
    import spatialdata
    from spatialdata.transformations import get_transformation

    [row] = export(torn.layout, SLIDE, encoder=ENCODER, to=out, form="spatialdata")
    assert written(out) == [f"{SLIDE}.zarr"]
    data, adata = spatialdata.read_zarr(row["path"]), torn.slide(SLIDE)
    table, spots = data.tables["table"], data.shapes["spots"]
    np.testing.assert_array_equal(table.obsm[ENCODER], torn.features(SLIDE, ENCODER))
    assert (table.X != adata.X).nnz == 0
    assert list(spots.index) == list(table.obs["instance"]) == list(adata.obs_names)
    np.testing.assert_array_equal(np.stack([spots.geometry.x, spots.geometry.y], 1), adata.obsm["spatial"])
    record = torn.layout.attributes(torn.layout.slide(SLIDE))
    assert record is not None
    matrix = get_transformation(spots, "um").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([record["mpp"], record["mpp"], 1]))
    np.testing.assert_allclose(spots["radius"], record["spot_diameter_px"] / 2)
    export(torn.layout, SLIDE, encoder=ENCODER, to=out, form="spatialdata", overwrite=True)
    assert written(out) == [f"{SLIDE}.zarr"]


def test_a_missing_package_is_named(study: Study, out: Path, monkeypatch: pytest.MonkeyPatch):
    form = package = "spatialdata"
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(InputError, match=f"--form {form} needs the package {package}: pip install {package}"):
        export(study.layout, encoder=ENCODER, to=out / "new", form=form)
    assert not (out / "new").exists()


def test_what_is_there_stays_unless_told_otherwise(torn: Study, out: Path):
    target = out / f"{torn.slides[1]}.h5"
    target.write_text("mine")
    with pytest.raises(InputError, match=f"{target}: is there already .*--overwrite"):
        export(torn.layout, encoder=ENCODER, to=out, form="trident")
    assert written(out) == [target.name]
    assert target.read_text() == "mine"
    export(torn.layout, encoder=ENCODER, to=out, form="trident", overwrite=True)
    assert written(out) == [f"{slide}.h5" for slide in torn.slides]
    with h5py.File(target) as file:
        assert "features" in file


def test_a_failure_leaves_nothing_behind(torn: Study, out: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: export_forms.Source) -> None:
        raise OSError("disk full")

    target = out / f"{SLIDE}.h5ad"
    target.write_text("mine")
    monkeypatch.setattr(export_forms.Source, "blocks", fail)
    with pytest.raises(OSError, match="disk full"):
        export(torn.layout, SLIDE, encoder=ENCODER, to=out, overwrite=True)
    assert written(out) == [target.name]
    assert target.read_text() == "mine"


def test_unfinished_embeddings_are_refused_before_anything_is_written(torn: Study, out: Path):
    array = EmbeddingArray(torn.layout, torn.slides[2], ENCODER)
    torn.layout.files.remove(f"{array.node}/receipts/1.json")
    with pytest.raises(IncompleteError, match="not finished"):
        export(torn.layout, encoder=ENCODER, to=out / "new")
    assert not (out / "new").exists()


def test_bad_calls(study: Study, out: Path):
    for options, message in (
        ({"form": "csv"}, "--form 'csv' is not one of h5ad, npy, trident, spatialdata"),
        ({"form": "trident", "cohort": "c"}, "--cohort goes with h5ad and spatialdata, not with trident"),
        ({"layer": "counts"}, "--layer needs --cohort"),
        ({"cohort": "c", "layer": "x"}, "has no layer 'x'"),
        ({"cohort": "x"}, "no cohort 'x'"),
        ({"slides": "x*"}, r"no slide matches 'x\*'"),
        ({"encoder": "uni"}, "has no embeddings of 'uni'"),
    ):
        with pytest.raises(InputError, match=message):
            export(study.layout, **{"encoder": ENCODER, "to": out, **options})
    (out / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; name a folder"):
        export(study.layout, encoder=ENCODER, to=out / "file")
