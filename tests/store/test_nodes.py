from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import DATA, FORMAT, Layout
from spared_fm.store.nodes import new_node, read_node, write_layer, write_node
from spared_fm.store.recipe import Recipe
from tests.store.conftest import assert_same, make_slide, record_of

EXAMPLES = {"local": 12, "memory": 6, "s3": 2}

names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\x00", exclude_categories=("Cs",)), min_size=1, max_size=6
).filter(lambda name: name not in (".", "..") and not name.startswith("__"))


@st.composite
def slides(draw: st.DrawFn) -> ad.AnnData:
    n, g = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    counts = draw(hnp.arrays(np.int32, (n, g), elements=st.integers(0, 9)))
    adata = ad.AnnData(
        X=sp.csr_matrix(counts) if draw(st.booleans()) else None,
        obs=pd.DataFrame(index=draw(st.lists(names, min_size=n, max_size=n, unique=True))),
        var=pd.DataFrame(index=draw(st.lists(names, min_size=g, max_size=g, unique=True))),
    )
    adata.obs["total"] = counts.sum(1).astype(float)
    adata.obsm["spatial"] = draw(hnp.arrays(np.float64, (n, 2), elements=st.floats(-1e6, 1e6)))
    adata.layers["dense"] = draw(hnp.arrays(np.float32, (n, g), elements=st.floats(-1e3, 1e3, width=32)))
    adata.uns["spatial"] = {"s": {"metadata": {"um_per_px": 0.5}, "images": {"lowres": np.zeros((3, 4, 3), np.uint8)}}}
    return adata


def test_plain_anndata_reads_what_was_put_in_also_an_embedding_added_later(storage: str, kind: str, recipe: Recipe):
    @settings(max_examples=EXAMPLES[kind], deadline=None)
    @given(slides())
    def check(adata: ad.AnnData) -> None:
        layout = Layout.create(f"{storage}/{uuid.uuid4().hex}")
        before = adata.copy()
        write_node(layout, layout.slide("s"), adata, record_of(adata))
        assert_same(adata, before)  # writing changes nothing
        assert_same(ad.read_zarr(layout.zarr_store(layout.slide("s"))), adata)

        array = EmbeddingArray.plan(layout, "s", "enc", recipe=recipe, dim=3, chunk_rows=4)
        values = np.random.default_rng(0).normal(size=(adata.n_obs, 3)).astype(np.float16)
        for k in range(array.n_chunks):
            array.write_chunk(k, values[array.rows(k)], device="cpu")
        found = read_as_a_stranger(str(layout.root), layout.slide("s"))
        np.testing.assert_array_equal(found.obsm["enc"], values)
        assert found.obsm["enc"].dtype == np.float16
        del found.obsm["enc"]
        assert_same(found, adata)

    check()


def read_as_a_stranger(root: str, key: str) -> ad.AnnData:
    """Read a node with anndata and zarr as installed, without help from us."""
    if "://" not in root:
        return ad.read_zarr(f"{root}/{key}")
    return ad.read_zarr(zarr.storage.FsspecStore.from_url(f"{root}/{key}", read_only=True))


def test_nothing_is_consolidated_and_dense_chunks_are_whole_rows(make_store: Callable[..., Layout], recipe: Recipe):
    layout = make_store(n_spots=1500)
    EmbeddingArray.plan(layout, "s1", "enc", recipe=recipe, dim=3, profile="local")
    with layout.files.local_folder(DATA) as folder:
        for path in folder.rglob("zarr.json"):
            assert "consolidated_metadata" not in path.read_text()
    group = zarr.open_group(layout.zarr_store(DATA), mode="r")["slides/s1"]
    assert group["obsm/spatial"].chunks == (1024, 2)
    assert group["obsm/enc"].chunks == (1024, 3)


def test_a_taken_node_is_refused_and_kept(make_store: Callable[..., Layout]):
    layout = make_store()
    before = read_node(layout, layout.slide("s1"))
    other = make_slide(4, seed=1)
    with pytest.raises(InputError, match="exists already"):
        write_node(layout, layout.slide("s1"), other, record_of(other))
    assert_same(read_node(layout, layout.slide("s1")), before)


def test_a_failed_write_leaves_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = Layout.create(tmp_path / "s")
    adata = make_slide()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        write_node(layout, layout.slide("x"), adata, record_of(adata))
    monkeypatch.undo()
    assert layout.slides() == []
    assert layout.files.list(".staging") == []


def test_a_layer_is_registered_last_and_replaced_whole(make_store: Callable[..., Layout]):
    layout = make_store()
    adata = make_slide()
    write_node(layout, layout.cohort("c"), adata, {"layers": {}})
    for value in (1.0, 2.0):
        write_layer(layout, "c", "d", np.full((10, 6), value, np.float32), {"method": str(value)})
    found = read_as_a_stranger(str(layout.root), layout.cohort("c"))
    np.testing.assert_array_equal(found.layers["d"], 2.0)
    assert layout.attributes(layout.cohort("c")) == {"layers": {"d": {"method": "2.0"}}}


def test_a_damaged_node_is_named(make_store: Callable[..., Layout]):
    layout = make_store()
    layout.files.replace(f"{DATA}/slides/s1/zarr.json", b"{")
    with pytest.raises(InputError, match=r"s1.zarr\.json is damaged"):
        layout.slides()


def test_other_peoples_nodes_are_left_alone(make_store: Callable[..., Layout]):
    layout = make_store()
    theirs = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    layout.files.replace(f"{DATA}/slides/theirs/zarr.json", json.dumps(theirs).encode())
    assert layout.slides() == ["s1"]
    assert FORMAT not in zarr.open_group(layout.zarr_store(f"{DATA}/slides/theirs"), mode="r").attrs


def test_layers_written_at_once_are_all_registered(make_store: Callable[..., Layout]):
    layout = make_store()
    write_node(layout, layout.cohort("c"), make_slide(), {"layers": {}})
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: write_layer(layout, "c", f"l{i}", np.ones((10, 6), "f4"), {"i": i}), range(6)))
    assert sorted((layout.attributes(layout.cohort("c")) or {})["layers"]) == [f"l{i}" for i in range(6)]


def test_a_layer_may_come_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spared_fm.store.nodes.MATRIX_ROWS", 4)
    layout = Layout.create(tmp_path / "store")
    values = np.random.default_rng(0).normal(size=(11, 3))
    key = layout.cohort("c")
    shell = ad.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(11)]), var=pd.DataFrame(index=list("abc")))
    with new_node(layout, key) as draft:
        rows = draft.layer("log1p", 3, np.float32, most_rows=20)
        for cut in (slice(0, 1), slice(1, 1), slice(1, 10), slice(10, 11)):
            rows.append(values[cut])
        assert not layout.cohorts()
        rows.close()
        np.testing.assert_array_equal(rows.read(slice(2, 9)), values[2:9].astype(np.float32))
        draft.layer("mask", 3, bool, most_rows=11).append(values > 0)  # publishing closes it
        draft.publish(shell, {"layers": {}})
    found = ad.read_zarr(layout.files.path(key))
    np.testing.assert_array_equal(found.layers["log1p"], values.astype(np.float32))
    np.testing.assert_array_equal(found.layers["mask"], values > 0)
    array = zarr.open_array(layout.files.path(key) / "layers" / "log1p")
    assert (array.shape, array.chunks) == ((11, 3), (4, 3))
    plain = zarr.open_array(_written(layout, shell, values) / "layers" / "log1p")
    assert dict(plain.attrs) == dict(array.attrs)
    assert plain.metadata.codecs == array.metadata.codecs


def _written(layout: Layout, shell: ad.AnnData, values: np.ndarray) -> Path:
    whole = shell.copy()
    whole.layers["log1p"] = values.astype(np.float32)
    write_node(layout, layout.cohort("plain"), whole, {"layers": {}})
    return layout.files.path(layout.cohort("plain"))


def test_a_node_given_up_leaves_nothing(tmp_path: Path):
    layout = Layout.create(tmp_path / "store")
    before = sorted(layout.root.rglob("*"))
    with new_node(layout, layout.cohort("c")) as draft:
        draft.layer("counts", 2, np.int32, most_rows=5).append(np.zeros((5, 2)))
    assert [path for path in sorted(layout.root.rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]
