from __future__ import annotations

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.targets import process_dataset
from spared_fm.targets.genes import gene_lengths
from tests.targets.spared.synthetic import collection

PARAMS = {"organism": "mouse", "top_moran_genes": 12, "combat_key": "slide_id"}


@pytest.fixture(scope="module")
def raw() -> ad.AnnData:
    return collection(list(gene_lengths("mouse").index[:60]))


@pytest.fixture(scope="module")
def done(raw: ad.AnnData) -> ad.AnnData:
    return process_dataset(raw, PARAMS)


def test_layers_and_columns_have_spareds_names(done: ad.AnnData) -> None:
    assert set(done.layers) == {
        "counts", "tpm", "log1p", "d_log1p", "c_log1p", "c_d_log1p", "deltas", "d_deltas", "c_deltas", "c_d_deltas",
        "noisy_c_d_log1p", "noisy_c_d_deltas", "mask",
    }  # fmt: skip
    assert set(done.var) == {
        "exp_frac", "glob_exp_frac", "n_cells_by_counts", "mean_counts", "pct_dropout_by_counts", "total_counts",
        "gene_length", "d_log1p_moran", "log1p_avg_exp", "d_log1p_avg_exp", "c_log1p_avg_exp", "c_d_log1p_avg_exp",
        "used_mean_c_d_deltas",
    }  # fmt: skip
    assert {"slide_id", "split", "n_genes_by_counts", "total_counts", "unique_id"} <= set(done.obs)
    assert done.uns["preprocessing"]["mode"] == "spared"
    assert "validation and test" in done.uns["preprocessing"]["fitted_on"]


def test_the_input_is_not_changed(raw: ad.AnnData, done: ad.AnnData) -> None:
    assert not raw.layers
    assert list(raw.obs) == ["slide_id", "patient", "split"]
    assert raw.n_vars == 60


def test_layers_fit_together(raw: ad.AnnData, done: ad.AnnData) -> None:
    layer = done.layers
    np.testing.assert_array_equal(layer["counts"], raw[done.obs_names, done.var_names].X.toarray())
    np.testing.assert_array_equal(layer["mask"], layer["counts"] > 0)
    np.testing.assert_array_equal(layer["d_log1p"][layer["mask"]], layer["log1p"][layer["mask"]])
    assert not layer["mask"].all()
    assert (layer["d_log1p"] > 0).all()
    assert (np.diff(done.var["d_log1p_moran"]) <= 0).all()
    train = (done.obs["split"] == "train").to_numpy()
    for name in ("deltas", "d_deltas", "c_deltas", "c_d_deltas"):
        np.testing.assert_allclose(layer[name][train].mean(axis=0), 0, atol=1e-9)
        assert np.abs(layer[name][~train].mean(axis=0)).max() > 1e-3
    assert np.abs(layer["c_d_log1p"] - layer["d_log1p"]).max() > 0.01


def test_without_combat(raw: ad.AnnData) -> None:
    out = process_dataset(raw, PARAMS | {"combat_key": "None"})
    assert not any(name.startswith(("c_", "noisy")) for name in out.layers)
    assert "d_deltas" in out.layers


def leaked(raw: ad.AnnData, where: np.ndarray) -> ad.AnnData:
    """Give the spots ``where`` an effect that reorders genes, hides some and changes every statistic."""
    out = raw.copy()
    dense = out.X.toarray()
    dense[where] *= np.random.default_rng(9).integers(0, 12, out.n_vars)
    out.X = type(raw.X)(dense)
    return out


@pytest.mark.parametrize("within_slides", [False, True])
def test_a_leak_planted_in_test_spots_changes_nothing_that_strict_mode_fits(
    raw: ad.AnnData, within_slides: bool
) -> None:
    raw = raw.copy()
    if within_slides:  # a block of every slide is for testing
        raw.obs["split"] = np.where(raw.obsm["spatial"][:, 0] < 550, "train", "test")
    test = (raw.obs["split"] == "test").to_numpy()
    planted = leaked(raw, test)
    clean, dirty = (process_dataset(a, PARAMS, mode="strict") for a in (raw, planted))
    pd.testing.assert_frame_equal(clean.var, dirty.var, check_exact=True)
    rows = clean.obs_names[clean.obs["split"] == "train"]
    for name in clean.layers:
        np.testing.assert_array_equal(clean[rows].layers[name], dirty[rows].layers[name], err_msg=name)
    leaky = [process_dataset(a, PARAMS, mode="spared").var for a in (raw, planted)]
    assert not leaky[0].equals(leaky[1]), "the effect is too weak to show a leak"


def test_strict_mode_leaves_unseen_batches_uncorrected_and_says_so(raw: ad.AnnData) -> None:
    out = process_dataset(raw, PARAMS, mode="strict")
    train = (out.obs["split"] == "train").to_numpy()
    np.testing.assert_array_equal(out.layers["c_log1p"][~train], out.layers["log1p"][~train])
    assert np.abs(out.layers["c_log1p"][train] - out.layers["log1p"][train]).max() > 0.01
    assert "not corrected" in out.uns["preprocessing"]["fitted_on"]


def test_an_empty_slide_does_not_count_and_a_single_spot_is_its_own_neighbourhood(raw: ad.AnnData) -> None:
    changed = raw.copy()
    dense = changed.X.toarray()
    slides = changed.obs["slide_id"].to_numpy()
    dense[slides == "s2"] = 0
    dense[np.flatnonzero(slides == "s3")[1:]] = 0
    dense[slides == "s3", :30] = 0
    changed.X = type(raw.X)(dense)
    out = process_dataset(changed, PARAMS | {"combat_key": "None", "real_data_percentage": 0.1})
    assert set(out.obs["slide_id"]) == {"s0", "s1", "s3"}
    alone = out[out.obs["slide_id"] == "s3"]
    assert alone.n_obs == 1
    np.testing.assert_array_equal(alone.layers["d_log1p"], alone.layers["log1p"])


def broken(raw: ad.AnnData, what: str) -> ad.AnnData:
    out = raw.copy()
    if what == "column":
        del out.obs["slide_id"]
    elif what == "split":
        out.obs["split"] = "holdout"
    elif what == "train":
        out.obs["split"] = "test"
    elif what == "spatial":
        del out.obsm["spatial"]
    elif what == "symbols":
        out.var_names = [f"Gene{i}" for i in range(out.n_vars)]
    elif what == "repeated":
        out.var_names = [out.var_names[0], *out.var_names[:-1]]
    elif what == "negative":
        out.X.data[0] = -1
    elif what == "missing":
        out.obs["slide_id"] = out.obs["slide_id"].where(np.arange(out.n_obs) > 0)
    return out


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("column", "no column 'slide_id'"),
        ("split", "'holdout'"),
        ("train", "no spot has split 'train'"),
        ("spatial", "spatial"),
        ("symbols", "must be Ensembl ids"),
        ("repeated", "more than once"),
        ("negative", "negative"),
        ("missing", "missing for 1 spots"),
    ],
)
def test_bad_input_is_named(raw: ad.AnnData, what: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        process_dataset(broken(raw, what), PARAMS)


def test_bad_requests_are_named(raw: ad.AnnData) -> None:
    with pytest.raises(InputError, match="panel of 999 genes"):
        process_dataset(raw, PARAMS | {"top_moran_genes": 999})
    with pytest.raises(InputError, match="unknown mode"):
        process_dataset(raw, PARAMS, mode="loose")
    halves = raw.copy()
    halves.X = halves.X * 0.5
    with pytest.raises(InputError, match="fractional"):
        process_dataset(halves, PARAMS, mode="strict")
    assert process_dataset(halves, PARAMS, mode="spared").n_vars == 12


def test_a_panel_size_of_zero_means_32_of_few_genes(raw: ad.AnnData) -> None:
    out = process_dataset(raw, PARAMS | {"top_moran_genes": 0, "real_data_percentage": 0.3})
    assert out.n_vars == 32


def test_importing_the_room_stays_light() -> None:
    code = "import sys, spared_fm.targets; assert not {'numpy', 'pandas', 'scipy', 'anndata'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
