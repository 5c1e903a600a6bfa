from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.counts import gene_names, raw_counts


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_counts_are_refused(make_slide, bad):
    slide = make_slide()
    slide.X = slide.X.astype(np.float32)
    slide.X.data[3] = bad
    with pytest.raises(InputError, match=r"slide s1 .*counts"):
        raw_counts(slide, "s1")


def test_absent_counts_are_refused(make_slide):
    slide = make_slide()
    slide.X = None
    with pytest.raises(InputError, match="slide s1 has no counts"):
        raw_counts(slide, "s1")


def test_stored_zeros_are_dropped_without_touching_the_slide(make_slide):
    slide = make_slide()
    slide.X = sp.csr_matrix(slide.X)
    slide.X.data[0] = 0
    stored = slide.X.nnz
    assert raw_counts(slide, "s").nnz == stored - 1
    assert slide.X.nnz == stored


def test_repeated_gene_names_are_told_apart(make_slide):
    slide = make_slide(n_genes=4)
    slide.var_names = ["a", "b", "a", "a"]
    assert gene_names(slide) == ["a", "b", "a-1", "a-2"]
