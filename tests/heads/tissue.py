"""Synthetic slides on a square grid for the heads' tests."""

from __future__ import annotations

import numpy as np


def tissue(seed=0, slides=3, side=10, d=6, genes=4, noise=0.3, around=0.0):
    """Return features, targets, groups and coords: targets are linear in a spot's features, plus ``around`` times its
    four neighbours'. Each slide has an offset of its own in features and targets."""
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=(2, d, genes))
    X, y, groups, coords = [], [], [], []
    for s in range(slides):
        z = rng.normal(size=(side, side, d))
        near = sum(np.roll(z, shift, axis) for shift in (1, -1) for axis in (0, 1)) / 2
        t = z @ w + around * (near @ v) + noise * rng.normal(size=(side, side, genes)) + rng.normal(size=genes)
        X.append(z.reshape(-1, d) + 3 * rng.normal(size=d))
        y.append(t.reshape(-1, genes))
        groups += [f"s{s}"] * side**2
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
        coords.append(200.0 * grid.reshape(-1, 2))
    return np.concatenate(X).astype(np.float32), np.concatenate(y), np.array(groups), np.concatenate(coords)


def pcc(found, wanted, groups):
    """Return Pearson's correlation, the mean over slides and genes."""
    return np.mean(
        [
            np.corrcoef(a, b)[0, 1]
            for slide in np.unique(groups)
            for a, b in zip(found[groups == slide].T, wanted[groups == slide].T, strict=True)
        ]
    )
