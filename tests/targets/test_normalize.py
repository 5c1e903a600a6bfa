from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.normalize import lognorm


def test_equals_scanpy_on_row_sums(make_slide):
    slide = make_slide(1)
    expected = ad.AnnData(X=slide.X.toarray().astype(np.float64))
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    np.testing.assert_allclose(lognorm(slide.X.toarray()), expected.X, rtol=1e-6)


def test_sparse_and_dense_agree_and_stay_what_they_were(make_slide):
    counts = make_slide(2).X
    before = counts.copy()
    sparse = lognorm(counts)
    assert sp.issparse(sparse)
    assert sparse.dtype == np.float32
    np.testing.assert_array_equal(sparse.toarray(), lognorm(counts.toarray()))
    assert (counts != before).nnz == 0


def test_totals_of_the_whole_slide_are_used():
    counts = np.array([[5, 0], [1, 1]])
    np.testing.assert_allclose(lognorm(counts, np.array([100, 10])), np.log1p([[500, 0], [1000, 1000]]), rtol=1e-6)


def test_empty_spot_gives_zeros():
    found = lognorm(np.array([[0, 0], [1, 0]]))
    np.testing.assert_allclose(found, [[0, 0], [np.log1p(1e4), 0]], rtol=1e-6)  # a single count is a library


def test_totals_of_another_length_are_refused():
    with pytest.raises(InputError, match="totals"):
        lognorm(np.ones((3, 2)), np.ones(2))
