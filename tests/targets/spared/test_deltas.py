from __future__ import annotations

import numpy as np

from spared_fm.targets.spared.deltas import deltas, noisy

VALUES = np.array([[1.0, 4.0], [3.0, 0.0], [9.0, 9.0]])
MEAN = np.array([2.0, 2.0])


def test_deltas_are_what_exceeds_the_mean() -> None:
    assert deltas(VALUES, MEAN).tolist() == [[-1, 2], [1, -2], [7, 7]]


def test_missing_entries_say_expression_zero() -> None:
    mask = VALUES != 0
    mask[2, 0] = False
    assert noisy(VALUES, mask).tolist() == [[1, 4], [3, 0], [0, 9]]
    assert noisy(deltas(VALUES, MEAN), mask, MEAN).tolist() == [[-1, 2], [1, -2], [-2, 7]]
