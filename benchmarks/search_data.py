"""Vectors for the search benchmarks: SYNTHETIC clusters, or mixtures of neighbouring real embeddings; float16 in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np

STEP = 50_000
#: Of the synthetic set: clusters, dimensions they and their rows spread in, and how the spread decays.
CLUSTERS, LATENT, DECAY = 2000, 64, 0.5


def clusters(dim: int, seed: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Rows near 2,000 centres that all lie off the origin, spread over 64 directions; a little noise in all."""
    rng = np.random.default_rng(seed)
    spread = (np.arange(1, LATENT + 1) ** -DECAY).astype(np.float32)
    centres = rng.normal(size=(CLUSTERS, LATENT)).astype(np.float32)
    mixing = (rng.normal(size=(LATENT, dim)) / np.sqrt(LATENT)).astype(np.float32)
    offset = rng.normal(size=dim).astype(np.float32) / 2

    def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
        latent = centres[rng.integers(CLUSTERS, size=rows)]
        latent = (latent + 0.5 * rng.standard_normal((rows, LATENT), dtype=np.float32)) * spread
        return latent @ mixing + 0.05 * rng.standard_normal((rows, dim), dtype=np.float32) + offset

    return draw


def mixtures(real: np.ndarray) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Rows between a real embedding and one of its ten nearest neighbours."""
    real = np.ascontiguousarray(real, dtype=np.float32)
    _, near = faiss.knn(real, real, min(11, len(real)))

    def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
        first = rng.integers(len(real), size=rows)
        second = near[first, rng.integers(near.shape[1], size=rows)]
        share = rng.uniform(0, 0.5, size=(rows, 1)).astype(np.float32)
        return (1 - share) * real[first] + share * real[second]

    return draw


def write(path: Path, rows: int, dim: int, real: Path | None, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """Write ``rows`` vectors; return them mapped, 1,000 queries of the same kind that are not among them, and the kind."""
    if real:
        known = np.load(real)
        draw, what = mixtures(known), f"mixtures of {len(known)} real embeddings from {real.name}"
        dim = known.shape[1]
    else:
        draw, what = clusters(dim, seed), "SYNTHETIC clusters"
    rng = np.random.default_rng(seed + 1)
    with path.open("wb") as file:
        for start in range(0, rows, STEP):
            draw(rng, min(STEP, rows - start)).astype(np.float16).tofile(file)
    queries = draw(rng, 1000).astype(np.float16).astype(np.float32)
    return np.asarray(np.memmap(path, np.float16, "r", shape=(rows, dim))), queries, what


def blocks(vectors: np.ndarray, start: int = 0, stop: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give ids (row numbers) and vectors in blocks."""
    stop = len(vectors) if stop is None else stop
    for first in range(start, stop, STEP):
        last = min(first + STEP, stop)
        yield np.arange(first, last), vectors[first:last]
