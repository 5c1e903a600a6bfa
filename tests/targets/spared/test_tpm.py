from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from spared_fm.targets.spared.tpm import known_lengths, log1p, tpm, tpm_scale


def test_each_spot_sums_to_a_million_per_base() -> None:
    rng = np.random.default_rng(0)
    dense, lengths = rng.poisson(2, (9, 7)).astype(np.float32), rng.integers(200, 9000, 7)
    rate = dense / lengths
    expected = rate / rate.sum(axis=1, keepdims=True) * 1e6
    np.testing.assert_allclose(tpm(sp.csr_matrix(dense), lengths), expected, rtol=1e-12)


def test_a_spot_without_counts_is_zero() -> None:
    assert tpm(sp.csr_matrix([[0, 0], [1, 1]]), np.array([1.0, 3.0])).tolist() == [[0, 0], [750000, 250000]]


def test_a_part_of_the_genes_keeps_the_scale_of_all() -> None:
    rng = np.random.default_rng(1)
    counts, lengths = sp.csr_matrix(rng.poisson(2, (9, 7))), rng.integers(200, 9000, 7)
    some = [4, 1]
    part = tpm(counts[:, some], lengths[some], tpm_scale(counts, lengths))
    np.testing.assert_array_equal(part, tpm(counts, lengths)[:, some])


def test_the_logarithm_is_of_base_two() -> None:
    assert log1p(np.array([[0.0, 1.0, 7.0]])).tolist() == [[0, 1, 3]]


def test_a_gene_without_length_adds_nothing() -> None:
    genes = pd.Index(["ENSG00000000003", "spike-in", "ENSG00000000005"])
    lengths = known_lengths(genes, "human")
    assert lengths.tolist() == [4066, np.inf, 1205]
    assert known_lengths(genes, None).tolist() == [np.inf] * 3
    counts = sp.csr_matrix(np.array([[2.0, 90, 1], [0, 5, 0]]))
    whole = tpm(counts, lengths)
    np.testing.assert_array_equal(whole[:, [0, 2]], tpm(counts[:, [0, 2]], lengths[[0, 2]]))
    assert not whole[:, 1].any()
    assert not whole[1].any()
