"""Synthetic slides on a square lattice."""

from __future__ import annotations

import numpy as np

SIDE = 6
SPOTS = SIDE * SIDE


def planted(seed=0, slides=4, d=6, context=1.0):
    """Expression is linear in a spot's features, and in the sum of those next to it times ``context``; one gene is constant."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(slides, SIDE, SIDE, d)).astype(np.float32)
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
    y = np.stack(
        [X[..., 0] + context * around[..., 1], X[..., 1] + context * around[..., 0], np.full(X.shape[:3], 7.0)], axis=-1
    )
    coords = np.tile(np.indices((SIDE, SIDE))[::-1].reshape(2, -1).T * 200.0, (slides, 1))
    groups = np.column_stack([np.repeat([f"s{i}" for i in range(slides)], SPOTS)] * 2)
    return X.reshape(-1, d), y.reshape(-1, 3), {"groups": groups, "coords": coords}


def error(found, y):
    """Return the mean squared error ÷ variance of the genes that vary."""
    return float(((found - y) ** 2)[:, :2].mean() / y[:, :2].var(axis=0).mean())
