from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.cohort import build_cohort
from spared_fm.targets.completion.median import adaptive_median
from spared_fm.targets.completion.registry import complete


@pytest.fixture
def cohort(make_slide):
    slides = {"a": make_slide(0), "b": make_slide(1)}
    slides["b"].obs["array_row"], slides["b"].obs["array_col"] = np.divmod(np.arange(42), 7)  # a square grid
    return build_cohort(slides, split={"a": "train", "b": "test"}, patients={}, n_genes=12)


def test_each_slide_is_completed_alone_on_its_own_grid(cohort):
    cohort = cohort[np.random.default_rng(0).permutation(cohort.n_obs)].copy()  # slides need not lie together
    name, found = complete(cohort)
    assert name == "d_lognorm"
    assert "d_lognorm" not in cohort.layers
    for slide, k in (("a", 6), ("b", 8)):
        rows = (cohort.obs["slide"] == slide).to_numpy()
        expected = adaptive_median(cohort.layers["lognorm"][rows], None, cohort.obsm["spatial"][rows], k=k)
        np.testing.assert_array_equal(found[rows], expected)
    mask = cohort.layers["mask"]
    np.testing.assert_array_equal(found[mask], cohort.layers["lognorm"][mask])
    assert (found[~mask] > 0).any()


def test_unknown_method_or_layer_is_refused(cohort):
    with pytest.raises(InputError, match="unknown completion 'magic': choose from adaptive-median"):
        complete(cohort, method="magic")
    with pytest.raises(InputError, match="no layer 'tpm'"):
        complete(cohort, source="tpm")
