"""Weights and inputs of the golden comparison with the released SpaCKLE, drawn from seeds: nothing large is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "spackle.npz"
SIZES = {"wide": (128, 64), "narrow": (32, 40)}
"""Case → genes (both panel sizes of the published sets), spots in the batch."""

TOKENS = 19


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 5) -> dict[str, np.ndarray]:
    """Weights for a state dict, one after the other in the order of their names; norms near 1, all else small."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for key in sorted(shapes):
        values = rng.uniform(-1, 1, shapes[key]) * (0.1 if len(shapes[key]) == 1 else shapes[key][1] ** -0.5)
        drawn[key] = (values + (".norm" in key and key.endswith("weight"))).astype(np.float32)
    return drawn


def inputs(case: str) -> np.ndarray:
    """Neighbourhoods, ``(spots, 19, genes)`` float32: log expression, a third of it 0."""
    genes, spots = SIZES[case]
    rng = np.random.default_rng(genes)
    values = rng.uniform(0, 12, (spots, TOKENS, genes))
    return (values * (rng.random(values.shape) > 1 / 3)).astype(np.float32)
