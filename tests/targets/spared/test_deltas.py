from __future__ import annotations

import numpy as np

from spared_fm.targets.spared.deltas import deltas, noisy, train_mean

VALUES = np.array([[1.0, 4.0], [3.0, 0.0], [9.0, 9.0]])
TRAIN = np.array([True, True, False])


def test_means_are_of_training_spots() -> None:
    mean = train_mean(VALUES, TRAIN)
    assert mean.tolist() == [2, 2]
    assert deltas(VALUES, mean).tolist() == [[-1, 2], [1, -2], [7, 7]]


def test_missing_entries_say_expression_zero() -> None:
    mask, mean = VALUES != 0, train_mean(VALUES, TRAIN)
    mask[2, 0] = False
    assert noisy(VALUES, mask).tolist() == [[1, 4], [3, 0], [0, 9]]
    assert noisy(deltas(VALUES, mean), mask, mean).tolist() == [[-1, 2], [1, -2], [-2, 7]]
