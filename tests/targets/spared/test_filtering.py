from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.spared.filtering import (
    expression_fractions,
    filter_counts,
    gene_metrics,
    gene_prefix,
    spots_within,
)
from spared_fm.targets.spared.params import Params, read_params

NAMES = pd.Index([f"g{i}" for i in range(5)])


def test_spot_limits_are_strict() -> None:
    counts = sp.csr_matrix([[10, 0], [11, 0], [0, 99], [50, 50]])
    assert spots_within(counts, 10, 100).tolist() == [False, True, True, False]


def test_fractions_are_the_lowest_of_the_slides_and_the_overall_one() -> None:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.7, (30, 5))
    slides = np.repeat(["a", "b", "c"], [5, 15, 10])
    lowest, overall = expression_fractions(sp.csr_matrix(dense), slides)
    per_slide = [(dense[slides == s] > 0).mean(axis=0) for s in "abc"]
    np.testing.assert_allclose(lowest, np.min(per_slide, axis=0))
    np.testing.assert_allclose(overall, (dense > 0).mean(axis=0))


def test_prefix_ends_at_the_last_gene_that_satisfies_the_running_mean() -> None:
    # running mean along exp_frac: .6, .75, .7, .6 — the first alone fails, the longest prefix still counts
    exp_frac = np.array([0.1, 0.4, 0.3, 0.2])
    overall = np.array([0.3, 0.6, 0.9, 0.6])
    assert gene_prefix(exp_frac, overall, 0.7).tolist() == [1, 2, 3]
    assert gene_prefix(exp_frac, overall, 0.75).tolist() == [1, 2]
    assert gene_prefix(exp_frac, overall, 0.95).tolist() == []


def test_the_filters_follow_one_another() -> None:
    dense = np.zeros((6, 5), int)
    dense[:, 0] = [20, 20, 20, 20, 20, 2]  # the last spot has too few counts
    dense[:, 1] = [0, 5, 5, 5, 5, 0]
    dense[:, 2] = [5, 0, 0, 0, 0, 0]  # too few counts over the collection
    dense[:, 3] = [0, 0, 0, 40, 0, 0]  # rarely seen: behind the prefix
    dense[0, 0] = 0
    dense[0, 3] = 30  # spot 0 has no counts on kept genes
    counts = sp.csr_matrix(dense)
    params = Params("human", cell_min_counts=3, gene_min_counts=5, gene_max_counts=1000)
    kept = filter_counts(counts, NAMES, np.array(list("aaabbb")), np.ones(6, bool), params)
    assert kept.genes.tolist() == [0, 1]
    assert kept.spots.tolist() == [1, 2, 3, 4]
    assert kept.obs["total_counts"].tolist() == [25, 25, 25, 25]
    assert kept.obs["n_genes_by_counts"].tolist() == [2, 2, 2, 2]
    # fractions are taken before spot 0 is dropped, metrics after
    assert kept.var["exp_frac"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert kept.var["glob_exp_frac"].tolist() == pytest.approx([0.8, 0.8])
    assert kept.var["n_cells_by_counts"].tolist() == [4, 4]


def test_genes_are_chosen_on_the_spots_to_fit_on() -> None:
    rng = np.random.default_rng(1)
    dense = rng.poisson(6, (40, 5))
    fit = np.arange(40) < 20
    params = Params("human", cell_min_counts=1)
    slides = np.repeat(["a", "b"], 20)
    first = filter_counts(sp.csr_matrix(dense), NAMES, slides, fit, params)
    dense[20:, 2] = 0
    dense[20:, 4] *= 50
    second = filter_counts(sp.csr_matrix(dense), NAMES, slides, fit, params)
    pd.testing.assert_frame_equal(first.var, second.var, check_exact=True)


def test_metrics_are_scanpys() -> None:
    import anndata as ad
    import scanpy as sc

    counts = sp.csr_matrix(np.random.default_rng(2).poisson(0.8, (12, 5)).astype(np.float32))
    adata = ad.AnnData(counts, var=pd.DataFrame(index=NAMES))
    sc.pp.calculate_qc_metrics(adata, inplace=True, log1p=False, percent_top=None)
    ours = gene_metrics(counts, NAMES)
    pd.testing.assert_frame_equal(ours, adata.var[list(ours)], check_dtype=False, check_names=False, rtol=1e-6)


def test_a_gene_list_replaces_both_gene_filters(tmp_path: Path) -> None:
    counts = sp.csr_matrix(np.full((4, 5), 3))
    listed = tmp_path / "genes.txt"
    listed.write_text("g3\ng1\n")
    params = Params("human", wildcard_genes=str(listed), gene_min_counts=1e5)
    assert filter_counts(counts, NAMES, np.array(list("aabb")), np.ones(4, bool), params).genes.tolist() == [3, 1]
    listed.write_text("g3 nope")
    with pytest.raises(InputError, match="nope"):
        filter_counts(counts, NAMES, np.array(list("aabb")), np.ones(4, bool), params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (Params("human", cell_min_counts=1e5), "no spot to fit on"),
        (Params("human", gene_min_counts=1e5), "no gene is seen"),
        (Params("human", wildcard_genes="/nowhere.txt"), "no such file"),
    ],
)
def test_nothing_left_is_said_so(params: Params, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filter_counts(sp.csr_matrix(np.full((4, 5), 30)), NAMES, np.array(list("aabb")), np.ones(4, bool), params)


def test_parameters_have_spareds_names_and_defaults() -> None:
    read = read_params({"organism": "mouse", "top_moran_genes": 32, "random_samples": -1, "n_hops": 2})
    assert read == Params("mouse", top_moran_genes=32)
    with pytest.raises(InputError, match="did you mean cell_min_counts"):
        read_params({"organism": "mouse", "cell_min_count": 3})
    with pytest.raises(InputError, match="organism"):
        read_params({})
