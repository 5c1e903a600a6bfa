"""Deviations from the training mean, and layers whose missing entries say nothing."""

from __future__ import annotations

import numpy as np


def deltas(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Expression minus the training mean of its gene, spots × genes, float64."""
    return np.asarray(values, np.float64) - mean


def noisy(values: np.ndarray, mask: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    """Expression with its completed entries taken back out.

    Parameters
    ----------
    values
        Expression, or with ``mean`` given its deltas, spots × genes.
    mask
        Bool, spots × genes, True where measured.
    mean
        Training means, ``(n_genes,)``.

    Returns
    -------
    np.ndarray
        Spots × genes, float64; missing entries are expression zero, which as a delta is minus the mean.
    """
    return np.where(mask, values, 0.0 if mean is None else -mean).astype(np.float64)
