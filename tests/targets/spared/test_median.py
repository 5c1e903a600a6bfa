from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.targets.completion.median import adaptive_median
from spared_fm.targets.spared.graph import Hops, hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median
from tests.targets.spared.synthetic import hex_xy


def by_the_words(values: np.ndarray, hops: Hops) -> np.ndarray:
    out = values.copy()
    for spot, gene in zip(*np.nonzero(values == 0), strict=True):
        column = values[:, gene]
        medians = [np.median(column[hops.spots[ends[0] - 1 : end]]) for ends in [hops.ends[spot]] for end in ends[1:]]
        found = [m for m in medians if m != 0]
        if found:
            out[spot, gene] = found[0]
        elif column.any():
            out[spot, gene] = np.median(column[column != 0])
    return out


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), hexagonal=st.booleans(), ties=st.booleans())
def test_the_kernel_does_what_the_words_say(seed: int, share: float, hexagonal: bool, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    xy = hex_xy(6, 7)
    values = rng.integers(1, 4, (42, 5)) * 0.7 if ties else rng.gamma(2, size=(42, 5))
    values = values * (rng.random((42, 5)) >= share)
    values[:, 4] = 0
    values[3, 4] = 2.5  # one value on the slide: only the last resort reaches far spots
    values[:, 3] *= seed % 2  # sometimes a gene without any value
    hops = hops_around(slide_graph(xy, hex_geometry=hexagonal))
    np.testing.assert_array_equal(complete_median(values, hops), by_the_words(values, hops))


def test_it_agrees_with_the_uncompiled_completion() -> None:
    rng = np.random.default_rng(5)
    xy = hex_xy(9, 8)
    values = (rng.gamma(2, size=(72, 6)) * (rng.random((72, 6)) > 0.6)).astype(np.float32)
    ours = complete_median(values, hops_around(slide_graph(xy)))
    np.testing.assert_allclose(ours, adaptive_median(values, None, xy, k=6), rtol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_bad_values_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="non-negative"):
        complete_median(np.array([[bad]]), hops_around(slide_graph(np.zeros((1, 2)))))
