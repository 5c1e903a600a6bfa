from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import read_node
from spared_fm.study import spared_export
from spared_fm.study.api import Study
from spared_fm.study.spared_export import export_spared
from spared_fm.study.spared_files import import_spared
from spared_fm.study.verify import verify

PX = 24
SPLIT = {"V1_A": "train", "V1_B": "train", "V2_A": "val"}
KEY = "patches_scale_1.0"


def raw_file(seed: int = 0, side: int = 5, n_genes: int = 14) -> ad.AnnData:
    """What SpaRED's reader leaves: three slides with their rows mixed, counts sparse float32, patches in obsm."""
    rng = np.random.default_rng(seed)
    row, col = (a.ravel() for a in np.mgrid[0:side, 0:side])
    col = 2 * col + row % 2
    tables, places = [], []
    for slide, part in SPLIT.items():
        names = [f"{slide}_BC{i}-1" for i in range(side * side)]
        table = pd.DataFrame(
            {
                "in_tissue": 1,
                "array_row": row,
                "array_col": col,
                "patient": slide[:2],
                "slide_id": slide,
                "split": part,
            },
            index=names,
        )
        tables.append(table)
        places.append(np.column_stack([100 * col, 173 * row]).astype(np.int64) + 60)
    obs = pd.concat(tables)
    obs["unique_id"] = obs.index.to_numpy(object)
    order = rng.permutation(len(obs))
    obs, places = obs.iloc[order], np.concatenate(places)[order]
    for column in ("patient", "slide_id", "split"):
        obs[column] = obs[column].astype("category")
    counts = rng.poisson(1.5, (len(obs), n_genes)).astype(np.float32)
    counts[:, 0] += 1
    var = pd.DataFrame(
        {"gene_ids": [f"ENSG{i:05d}" for i in range(n_genes)], "feature_types": pd.Categorical(["Gene"] * n_genes)},
        index=[f"ENSG{i:05d}" for i in range(n_genes)],
    )
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)
    adata.obsm["spatial"] = places
    adata.obsm[KEY] = rng.integers(0, 256, (len(obs), PX * PX * 3), dtype=np.uint8)
    adata.uns["spatial"] = {
        slide: {
            "images": {"lowres": rng.random((6, 7, 3), dtype=np.float32)},
            "scalefactors": {"spot_diameter_fullres": 47.3, "tissue_lowres_scalef": 0.01},
            "metadata": {"source_image_path": f"/somewhere/{slide}.tif"},
        }
        for slide in SPLIT
    }
    return adata


def processed_file(raw: ad.AnnData) -> ad.AnnData:
    """What SpaRED's processing leaves of it: fewer spots and genes in another order, layers, statistics."""
    rng = np.random.default_rng(1)
    adata = raw[np.arange(raw.n_obs) % 7 != 3][:, [9, 2, 0, 5, 7]].copy()
    adata.X = adata.X.toarray()
    adata.layers["counts"] = adata.X.copy()
    for layer in ("tpm", "log1p", "c_d_log1p", "c_t_deltas"):
        adata.layers[layer] = rng.normal(size=adata.shape).astype(np.float32 if layer != "tpm" else np.float64)
    adata.layers["mask"] = adata.X != 0
    adata.var["c_d_log1p_avg_exp"] = rng.random(adata.n_vars)
    adata.obs["total_counts"] = adata.X.sum(axis=1)
    adata.obsm["embeddings_ShuffleNetV2"] = rng.random((adata.n_obs, 3), dtype=np.float32)
    adata.obsp["spatial_connectivities"] = sparse.random(adata.n_obs, adata.n_obs, 0.05, format="csr", rng=rng)
    adata.uns["spatial_neighbors"] = {"connectivities_key": "spatial_connectivities", "params": {"n_neighbors": 18}}
    return adata


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("spared")
    raw = raw_file()
    processed_file(raw).write_h5ad(folder / "adata.h5ad")
    raw.write_h5ad(folder / "adata_raw.h5ad")
    return folder / "adata_raw.h5ad", folder / "adata.h5ad"


Stored = tuple[Layout, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def stores(written: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Of adata_raw.h5ad and of adata.h5ad: a store with it as cohort c, the file, what importing it said. Not to be changed."""
    made = []
    for path in written:
        layout = Layout.create(tmp_path_factory.mktemp("stored") / "store")
        made.append((layout, path, import_spared(layout, path, "c")))
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def copy(layout: Layout, to: Path) -> Layout:
    return Layout.open(shutil.copytree(layout.root, to))


def one_slide() -> ad.AnnData:
    raw = raw_file()
    return raw[raw.obs["slide_id"] == "V1_A", :4].copy()


def dense(value: object) -> np.ndarray:
    return value.toarray() if sparse.issparse(value) else np.asarray(value)


def assert_same_file(left: Path, right: Path) -> None:
    """Equal names, dtypes and values in every part of two .h5ad files."""
    a, b = ad.read_h5ad(left), ad.read_h5ad(right)
    assert_frame_equal(a.obs, b.obs)
    assert_frame_equal(a.var, b.var)
    pairs = [(a.X, b.X)]
    for part in ("layers", "obsm", "obsp", "varm"):
        assert set(getattr(a, part)) == set(getattr(b, part)), part
        pairs += [(value, getattr(b, part)[key]) for key, value in getattr(a, part).items()]
    for x, y in pairs:
        assert (type(x), x.dtype) == (type(y), y.dtype)
        np.testing.assert_array_equal(dense(x), dense(y))
    assert_same_tree(a.uns, b.uns)


def assert_same_tree(a: object, b: object) -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert_same_tree(value, b[key])
    else:
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


@pytest.mark.parametrize("which", [0, 1])
def test_in_and_out_again_is_equal(
    stores: list[Stored], tmp_path: Path, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spared_export, "BLOCK", 7)
    layout, path, row = stores[which]
    before = ad.read_h5ad(path)
    assert (row["status"], row["spots"], row["genes"], row["patches"]) == ("added", *before.shape, True)
    assert row["split"] == {slide: SPLIT[slide] for slide in before.obs["slide_id"].unique()}
    assert row["warnings"] == []
    assert row["share_missing"] == pytest.approx(1 - np.mean(dense(before.X) != 0))
    written = export_spared(layout, "c", tmp_path / "out" / "back.h5ad")
    assert_same_file(path, tmp_path / "out" / "back.h5ad")
    assert written["bytes"] == (tmp_path / "out" / "back.h5ad").stat().st_size
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["back.h5ad"]
    assert import_spared(layout, path, "c")["status"] == "unchanged"
    assert verify(layout) == []


def test_raw_then_processed_share_their_slides(
    stores: list[Stored], written: tuple[Path, Path], tmp_path: Path
) -> None:
    layout = copy(stores[0][0], tmp_path / "store")
    row = import_spared(layout, written[1], "done")
    assert {r["status"] for r in row["slides"]} == {"present"}
    assert read_node(layout, layout.slide("V1_A")).shape == (25, 14)
    export_spared(layout, "done", tmp_path / "back.h5ad")
    assert_same_file(written[1], tmp_path / "back.h5ad")
    assert read_node(layout, layout.cohort("c")).X is None  # the raw counts lie in the slides only


def test_patches_are_neither_copied_into_the_store_nor_held(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_slide().write_h5ad(tmp_path / "adata.h5ad")
    most = 0
    plain = h5py.Dataset.__getitem__

    def watched(self: h5py.Dataset, key: object, **kw: object) -> object:
        nonlocal most
        values = plain(self, key, **kw)
        if self.name == f"/obsm/{KEY}":
            most = max(most, len(values))
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    monkeypatch.setattr(spared_export, "BLOCK", 4)
    import_spared(layout, tmp_path / "adata.h5ad", "c")
    export_spared(layout, "c", tmp_path / "back.h5ad")
    monkeypatch.undo()
    assert 1 <= most <= 4
    assert KEY not in read_node(layout, layout.cohort("c")).obsm
    assert KEY not in read_node(layout, layout.slide("V1_A")).obsm


def test_the_cohort_works_as_any_other(stores: list[Stored], tmp_path: Path) -> None:
    study = Study(copy(stores[1][0], tmp_path / "store").root)
    study.encode("stain-bank", patch_um=20, threads=1)
    rows = study.benchmark("c", encoders=["stain-bank"], heads=["gene-mean"], targets=["c_d_log1p"], score="measured")
    assert len(rows) >= 1


def test_patches_left_out_or_gone(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "adata.h5ad"
    one_slide().write_h5ad(path)
    import_spared(layout, path, "c")
    with h5py.File(path, "r+") as file:
        file["obsm"][KEY][0, 0] ^= 1
    with pytest.raises(InputError, match=r"adata\.h5ad: has changed since"):
        export_spared(layout, "c", tmp_path / "back.h5ad")
    path.unlink()
    with pytest.raises(InputError, match=r"adata\.h5ad: is gone, .*relink"):
        export_spared(layout, "c", tmp_path / "back.h5ad")
    assert not export_spared(layout, "c", tmp_path / "back.h5ad", patches=False)["patches"]
    assert list(ad.read_h5ad(tmp_path / "back.h5ad").obsm) == ["spatial"]
    with pytest.raises(InputError, match=r"back\.h5ad: is there already"):
        export_spared(layout, "c", tmp_path / "back.h5ad", patches=False)


def test_a_failed_export_leaves_nothing(stores: list[Stored], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(spared_export, "_copy_patches", fail)
    with pytest.raises(OSError, match="disk is full"):
        export_spared(stores[1][0], "c", tmp_path / "out" / "back.h5ad")
    assert list((tmp_path / "out").iterdir()) == []


def test_fractional_counts_stay_as_precise_as_they_were_and_what_has_no_place_is_named(
    layout: Layout, tmp_path: Path
) -> None:
    adata = one_slide()
    adata.X = adata.X.astype(np.float64) * 0.1  # Parigi's file is normalised
    adata.write_h5ad(tmp_path / "adata.h5ad")
    with h5py.File(tmp_path / "adata.h5ad", "r+") as file:
        file["obsm"][f"{KEY}_transformed_numpy"] = np.zeros((adata.n_obs, 12), np.float32)
    row = import_spared(layout, tmp_path / "adata.h5ad", "c")
    assert any("obsm['patches_scale_1.0_transformed_numpy'] is not taken over" in text for text in row["warnings"])
    export_spared(layout, "c", tmp_path / "back.h5ad")
    adata.write_h5ad(tmp_path / "adata.h5ad")
    assert_same_file(tmp_path / "adata.h5ad", tmp_path / "back.h5ad")


def broken(adata: ad.AnnData, how: str) -> ad.AnnData:
    if how == "split":
        adata.obs["split"] = adata.obs["split"].astype(str).replace("val", "held_out")
    elif how == "two splits":
        adata.obs["split"] = np.where(np.arange(adata.n_obs) % 2, "train", "val")
    elif how == "no split":
        del adata.obs["split"]
    elif how == "nan":
        adata.obs["patient"] = adata.obs["patient"].where(adata.obs["slide_id"] != "V2_A")
    elif how == "ours":
        adata.obs["barcode"] = "x"
    return adata


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("split", "split 'held_out' is not one of train, val, test"),
        ("two splits", "has spots of 2 values of split"),
        ("no split", "obs has no column 'split'"),
        ("nan", "25 spots have no patient"),
        ("ours", "a column 'barcode'"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_written(
    layout: Layout, tmp_path: Path, how: str, message: str
) -> None:
    path = tmp_path / "adata.h5ad"
    broken(raw_file(), how).write_h5ad(path)
    with pytest.raises(InputError, match=message):
        import_spared(layout, path, "c")
    assert (layout.slides(), layout.cohorts()) == ([], [])


def test_other_bad_input(stores: list[Stored], written: tuple[Path, Path], layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_spared(layout, tmp_path / "none.h5ad", "c")
    (tmp_path / "bad.h5ad").write_bytes(written[0].read_bytes()[:5000])
    with pytest.raises(InputError, match=r"bad\.h5ad: not a readable \.h5ad"):
        import_spared(layout, tmp_path / "bad.h5ad", "c")
    processed = stores[1][0]
    with pytest.raises(InputError, match="exists and is not from"):
        import_spared(processed, written[0], "c")
    with pytest.raises(InputError, match=r"in the store without spot .*adata_raw\.h5ad before"):
        import_spared(processed, written[0], "raw")
    with pytest.raises(InputError, match="no cohort 'other'"):
        export_spared(processed, "other", tmp_path / "x.h5ad")
    assert processed.cohorts() == ["c"]


@pytest.mark.parametrize(("change", "message"), [("counts", "other counts"), ("places", "other coordinates")])
def test_a_slide_of_the_same_name_with_other_content_is_refused(
    stores: list[Stored], written: tuple[Path, Path], tmp_path: Path, change: str, message: str
) -> None:
    adata = ad.read_h5ad(written[1])
    if change == "counts":
        adata.X[3, 2] += 1
    else:
        adata.obsm["spatial"][3, 1] += 1
    adata.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(InputError, match=message):
        import_spared(stores[0][0], tmp_path / "other.h5ad", "other")
    assert stores[0][0].cohorts() == ["c"]


def test_only_files_of_spareds_go_out(stores: list[Stored], tmp_path: Path) -> None:
    layout = copy(stores[1][0], tmp_path / "store")
    layout.update_attributes(layout.cohort("c"), lambda known: {k: v for k, v in known.items() if k != "spared"})
    with pytest.raises(InputError, match="is not from a file of SpaRED's"):
        export_spared(layout, "c", tmp_path / "x.h5ad")
