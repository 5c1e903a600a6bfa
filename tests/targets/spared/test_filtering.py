from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.spared.filtering import Tally, choose_genes, gene_columns, gene_prefix, spots_within, tally
from spared_fm.targets.spared.params import Params, read_params

NAMES = pd.Index([f"g{i}" for i in range(5)])


def tallied(dense: np.ndarray, slides: np.ndarray) -> Tally:
    return tally([sp.csr_matrix(dense[slides == s]) for s in np.unique(slides)], dense.shape[1])


def test_spot_limits_are_strict() -> None:
    assert spots_within(np.array([10, 11, 99, 100]), 10, 100).tolist() == [False, True, True, False]


def test_fractions_are_the_lowest_of_the_slides_and_the_overall_one() -> None:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.7, (30, 5))
    slides = np.repeat(["a", "b", "c"], [5, 15, 10])
    found = tallied(dense, slides)
    per_slide = [(dense[slides == s] > 0).mean(axis=0) for s in "abc"]
    np.testing.assert_allclose(found.lowest, np.min(per_slide, axis=0))
    np.testing.assert_array_equal(found.seen, (dense > 0).sum(axis=0))
    np.testing.assert_array_equal(found.total, dense.sum(axis=0))
    assert found.n_spots == 30


def test_a_slide_without_spots_does_not_count() -> None:
    full, empty = sp.csr_matrix(np.ones((4, 2))), sp.csr_matrix((0, 2))
    assert tally([full, empty], 2).lowest.tolist() == [1, 1]


def test_prefix_ends_at_the_last_gene_that_satisfies_the_running_mean() -> None:
    # running mean along exp_frac: .6, .75, .7, .6 — the first alone fails, the longest prefix still counts
    exp_frac = np.array([0.1, 0.4, 0.3, 0.2])
    overall = np.array([0.3, 0.6, 0.9, 0.6])
    assert gene_prefix(exp_frac, overall, 0.7).tolist() == [1, 2, 3]
    assert gene_prefix(exp_frac, overall, 0.75).tolist() == [1, 2]
    assert gene_prefix(exp_frac, overall, 0.95).tolist() == []


def test_limits_of_gene_totals_come_before_the_prefix_rule() -> None:
    dense = np.zeros((6, 5), int)
    dense[:, 0] = 20
    dense[:, 1] = [0, 5, 5, 5, 5, 5]
    dense[0, 2] = 5  # too few counts over the collection
    dense[3, 3] = 40  # rarely seen: behind the prefix
    dense[:, 4] = 900  # too many counts
    found = tallied(dense, np.array(list("aaabbb")))
    params = Params("human", gene_min_counts=5, gene_max_counts=1000)
    assert choose_genes(found, NAMES, params).tolist() == [0, 1]
    wider = Params("human", gene_min_counts=5, real_data_percentage=0.8)
    assert choose_genes(found, NAMES, wider).tolist() == [0, 4, 1]


def test_columns_are_scanpys() -> None:
    import anndata as ad
    import scanpy as sc

    counts = sp.csr_matrix(np.random.default_rng(2).poisson(0.8, (12, 5)).astype(np.float32))
    adata = ad.AnnData(counts, var=pd.DataFrame(index=NAMES))
    sc.pp.calculate_qc_metrics(adata, inplace=True, log1p=False, percent_top=None)
    ours = gene_columns(tally([counts[:5], counts[5:]], 5), np.arange(5), NAMES, 12)
    theirs = adata.var[list(ours)[2:]]
    pd.testing.assert_frame_equal(ours[list(theirs)], theirs, check_dtype=False, check_names=False, rtol=1e-6)
    np.testing.assert_allclose(ours["glob_exp_frac"], (counts.toarray() > 0).mean(axis=0))


def test_a_gene_list_replaces_both_gene_filters(tmp_path: Path) -> None:
    found = tally([sp.csr_matrix(np.full((4, 5), 3))], 5)
    listed = tmp_path / "genes.txt"
    listed.write_text("g3\ng1\n")
    params = Params("human", wildcard_genes=str(listed), gene_min_counts=1e5)
    assert choose_genes(found, NAMES, params).tolist() == [3, 1]
    listed.write_text("g3 nope")
    with pytest.raises(InputError, match="nope"):
        choose_genes(found, NAMES, params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (Params("human", gene_min_counts=1e5), "no gene is seen"),
        (Params("human", wildcard_genes="/nowhere.txt"), "no such file"),
    ],
)
def test_nothing_left_is_said_so(params: Params, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_genes(tally([sp.csr_matrix(np.full((4, 5), 30))], 5), NAMES, params)


def test_parameters_have_spareds_names_and_defaults() -> None:
    read = read_params({"organism": "mouse", "top_moran_genes": 32, "random_samples": -1, "n_hops": 2})
    assert read == Params("mouse", top_moran_genes=32)
    with pytest.raises(InputError, match="did you mean cell_min_counts"):
        read_params({"organism": "mouse", "cell_min_count": 3})
    with pytest.raises(InputError, match="organism"):
        read_params({})
    assert read_params({}, may_lack_organism=True).organism is None
    with pytest.raises(InputError, match="organism"):
        read_params({"organism": "yeast"}, may_lack_organism=True)
