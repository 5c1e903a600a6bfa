"""SYNTHETIC raw counts with spatial structure and genes that go together, for the tests of completers."""

from __future__ import annotations

import numpy as np

from spared_fm.targets.completion.hiding import Counts
from tests.targets.conftest import hex_grid


def synthetic(slide: str, split: str, *, rows: int = 9, cols: int = 8, genes: int = 10, depth: float = 4.0) -> Counts:
    """Counts of one slide: Poisson about smooth fields that all genes share in different parts."""
    rng = np.random.default_rng([len(slide), *slide.encode()])
    xy = hex_grid(rows, cols)[2]
    n = len(xy)
    place = (xy - xy.mean(axis=0)) / np.ptp(xy, axis=0).max()
    phases = rng.uniform(0, 1, 2)
    fields = np.stack([np.sin(4 * place[:, 0] + phases[0]), np.cos(5 * place[:, 1] + phases[1])], axis=1)
    loadings = np.random.default_rng(0).normal(0, 0.9, (2, genes))
    rate = np.exp(fields @ loadings + np.linspace(-1, 0.8, genes)) * depth * rng.gamma(8, 1 / 8, (n, 1))
    other = rng.poisson(60 * depth, n).astype(float)
    lengths = np.linspace(800, 4000, genes)
    return Counts(slide, split, rng.poisson(rate).astype(float), other, other / 2000, lengths, xy, 6)


def study(**sizes: float) -> list[Counts]:
    """Three training slides, one to validate, one to test."""
    names = (("t1", "train"), ("t2", "train"), ("t3", "train"), ("v", "val"), ("x", "test"))
    return [synthetic(slide, split, **sizes) for slide, split in names]  # type: ignore[arg-type]
