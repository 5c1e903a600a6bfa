"""A small store with one slide, for the store's tests: in a folder, in memory and on S3."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spared_fm.store.layout import Layout
from spared_fm.store.nodes import write_node
from spared_fm.store.recipe import Recipe, spots_digest
from tests.object_stores import KINDS, place


def make_slide(n_spots: int = 10, n_genes: int = 6, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(
        X=sp.csr_matrix(rng.poisson(1.0, (n_spots, n_genes)).astype(np.int32)),
        obs=pd.DataFrame(
            {"in_tissue": 1, "region": pd.Categorical(rng.choice(["a", "b"], n_spots), ["a", "b"])},
            index=[f"s{i}-1" for i in range(n_spots)],
        ),
        var=pd.DataFrame({"gene_ids": [f"ENSG{i}" for i in range(n_genes)]}, index=[f"g{i}" for i in range(n_genes)]),
    )
    adata.obsm["spatial"] = rng.uniform(0, 1000, (n_spots, 2))
    return adata


def record_of(adata: ad.AnnData, fingerprint: str = "sha256:1") -> dict[str, Any]:
    return {
        "n_spots": adata.n_obs,
        "fingerprint": fingerprint,
        "spots_digest": spots_digest(list(adata.obs_names), adata.obsm["spatial"]),
    }


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        patch_um=112.0,
        patch_px=224,
        mpp=0.5,
        resampling="bicubic",
        stain_normalisation="none",
        encoder="test/1",
        weights="sha256:0",
        transform={"scale": "1/255"},
        pooling="mean",
        prefix_tokens=0,
        views="identity",
        compute_dtype="float32",
        store_dtype="float16",
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep local copies of objects out of the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPARED_FM_CACHE", str(folder))
    return folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def storage(kind: str, tmp_path: Path) -> str:
    """Give an empty place for stores, of each kind in turn."""
    return str(place(kind, tmp_path))


def new_store(storage: str | Path, n_spots: int = 10, slide: str = "s1", folder: str = "store") -> Layout:
    layout = Layout.create(f"{storage}/{folder}")
    adata = make_slide(n_spots)
    write_node(layout, layout.slide(slide), adata, record_of(adata))
    return layout


@pytest.fixture
def make_store(storage: str) -> Callable[..., Layout]:
    return functools.partial(new_store, storage)


@pytest.fixture
def make_local_store(tmp_path: Path) -> Callable[..., Layout]:
    return functools.partial(new_store, tmp_path)


def assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    """Compare two AnnData value by value, dtypes included."""
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == list(expected.var_names)
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_names=False)
    pd.testing.assert_frame_equal(found.var, expected.var, check_names=False)
    assert (found.X is None) == (expected.X is None)
    if expected.X is not None:
        assert found.X.dtype == expected.X.dtype
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    for part in ("obsm", "layers"):
        assert set(getattr(found, part)) == set(getattr(expected, part))
        for name, value in getattr(expected, part).items():
            np.testing.assert_array_equal(getattr(found, part)[name], value)
            assert getattr(found, part)[name].dtype == value.dtype
    assert_same_tree(dict(found.uns), dict(expected.uns))


def assert_same_tree(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert_same_tree(found[key], value)
    else:
        np.testing.assert_array_equal(found, expected)
