"""First and second moments of features and targets per slide, gathered in one pass: all that ridge needs.

Everything is float64. Rows are shifted by the first row of their slide before they are multiplied, so that
features with a large common offset do not lose their digits and a constant feature has a variance of exactly
zero.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg.blas import dgemm, dsyrk

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_FEATURES, NAN_TARGETS, Block, row_groups
from spared_fm.heads.scaling import rounding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray


@dataclass
class Moments:
    """Sums over the spots of one slide (or of several) about an origin.

    Attributes
    ----------
    n
        Number of spots.
    sx, sy
        Sums of features (d,) and of targets (genes,).
    xx, xy
        Sums of products, (d, d) and (d, genes).
    yy
        Sums of squared targets (genes,).
    """

    n: int
    sx: NDArray[np.float64]
    sy: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]

    def about(self, ox: NDArray[np.float64], oy: NDArray[np.float64]) -> Moments:
        """Return the same sums with the origin moved by ``ox`` (d,) and ``oy`` (genes,)."""
        n, sx, sy = self.n, self.sx, self.sy
        half = sx - n * ox / 2
        xx = self.xx - np.stack([ox, half], axis=1) @ np.stack([half, ox])
        xy = self.xy - np.outer(ox, sy - n * oy)
        xy -= np.outer(sx, oy)
        return Moments(n, sx - n * ox, sy - n * oy, xx, xy, self.yy - oy * (2 * sy - n * oy))

    def scaled(self, factor: NDArray[np.float64]) -> Moments:
        """Return the sums of features multiplied by ``factor`` (d,)."""
        xx = self.xx * factor[:, None]
        xx *= factor
        return Moments(self.n, self.sx * factor, self.sy, xx, self.xy * factor[:, None], self.yy)

    def less(self, other: Moments) -> Moments:
        """Return the sums without the spots of ``other`` (same origin)."""
        return Moments(
            self.n - other.n,
            self.sx - other.sx,
            self.sy - other.sy,
            self.xx - other.xx,
            self.xy - other.xy,
            self.yy - other.yy,
        )

    def add(self, other: Moments) -> None:
        """Add the sums of ``other`` (same origin) in place."""
        self.n += other.n
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine += theirs

    def arrays(self) -> tuple[NDArray[np.float64], ...]:
        """Return the five arrays."""
        return self.sx, self.sy, self.xx, self.xy, self.yy

    def inverse_std(self) -> NDArray[np.float64]:
        """Return 1 ÷ standard deviation of each feature (population, about the origin), 0 if constant."""
        variance = np.diagonal(self.xx) / max(self.n, 1)
        return np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)

    def drop(self, features: NDArray[np.bool_]) -> None:
        """Set the products of some features (d,) bool to exactly zero: they are constant."""
        if features.any():
            self.xx[features] = 0.0
            self.xx[:, features] = 0.0
            self.xy[features] = 0.0


#: Rows that a thread turns into float64 at a time: they stay in its cache until they are summed.
PIECE = 512


class _Room:
    """Threads and memory that turn rows into float64, kept from block to block: a quarter of the pass otherwise."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.held = [np.empty(0), np.empty(0)]

    def __call__(self, rows: int, columns: int, which: int) -> NDArray[np.float64]:
        if self.held[which].size < rows * columns:
            self.held[which] = np.empty(rows * columns)
        return self.held[which][: rows * columns].reshape(rows, columns)


class _Slide:
    """The running sums of one slide, about its first row."""

    def __init__(self, x0: NDArray[Any], y0: NDArray[Any], patient: str) -> None:
        d, g = len(x0), len(y0)
        self.patient = patient
        self.x0, self.y0 = x0.astype(np.float64), y0.astype(np.float64)
        self.n = 0
        self.sx, self.sy, self.yy = np.zeros(d), np.zeros(g), np.zeros(g)
        self.xx = np.zeros((d, d), order="F")  # the lower triangle only, summed in place
        self.yx = np.zeros((g, d), order="F")

    def add(self, X: NDArray[Any], y: NDArray[Any], room: _Room) -> None:
        x64, y64 = room(len(X), len(self.x0), 0), room(len(y), len(self.y0), 1)

        def shift(start: int) -> tuple[NDArray[np.float64], ...]:
            rows = slice(start, start + PIECE)
            a, b = x64[rows], y64[rows]
            with np.errstate(invalid="ignore"):  # infinite values are told of below
                np.subtract(X[rows], self.x0, out=a)
                np.subtract(y[rows], self.y0, out=b)
                return a.sum(axis=0), b.sum(axis=0), np.einsum("ij,ij->j", b, b)

        for sx, sy, yy in room.pool.map(shift, range(0, len(X), PIECE)):  # in order: the sums don't depend on threads
            self.sx += sx
            self.sy += sy
            self.yy += yy
        self.n += len(x64)
        if not np.isfinite(self.sx).all():
            raise InputError(NAN_FEATURES)
        if not np.isfinite(self.sy).all():
            raise InputError(NAN_TARGETS)
        self.xx = dsyrk(1.0, x64.T, beta=1.0, c=self.xx, lower=1, overwrite_c=1)
        self.yx = dgemm(1.0, y64.T, x64.T, beta=1.0, c=self.yx, trans_b=1, overwrite_c=1)

    def centred(self) -> tuple[Moments, NDArray[np.float64], NDArray[np.float64]]:
        """Return the sums about the slide's own means, and the means. The running sums are used up."""
        mx, my = self.sx / self.n, self.sy / self.n
        xx = self.xx + self.xx.T  # the other triangle is zero
        np.fill_diagonal(xx, np.diagonal(self.xx))
        out = Moments(self.n, self.sx, self.sy, xx, self.yx.T, self.yy).about(mx, my)
        out.drop(np.diagonal(out.xx) <= rounding(self.n, mx + self.x0))
        out.sx[:] = 0.0
        out.sy[:] = 0.0
        np.maximum(out.yy, 0.0, out=out.yy)
        return out, mx + self.x0, my + self.y0


def gather(blocks: Iterable[Block], block_rows: int) -> dict[str, _Slide]:
    """Read every block once and return the running sums of each slide, by label.

    Parameters
    ----------
    blocks
        ``(X, y, groups)``, checked by the head: features (m, d), targets (m, genes), labels as `row_groups` takes
        them. Blocks longer than ``block_rows`` are read piecewise. Memory: one piece, plus 8·d·(d + genes) bytes
        per slide.
    block_rows
        Most rows that are held in float64 at a time.

    Raises
    ------
    InputError
        NaN or infinite values, labels that do not fit, a slide of two patients.
    """
    slides: dict[str, _Slide] = {}
    with ThreadPoolExecutor(threads()) as pool:
        room = _Room(pool)
        for X, y, groups in blocks:
            names, patients = row_groups(groups, len(X))
            for start in range(0, len(X), block_rows):
                rows = slice(start, start + block_rows)
                for label, picked in _by_label(names[rows]):
                    x, t, owners = X[rows][picked], y[rows][picked], patients[rows][picked]
                    if label not in slides:
                        slides[label] = _Slide(x[0], t[0], str(owners[0]))
                    if (owners != slides[label].patient).any():
                        raise InputError(
                            f"slide {label!r} has more than one patient: give each one a slide label of its own"
                        )
                    slides[label].add(x, t, room)
    return slides


def threads() -> int:
    """Cores of this process, or as many as ``OMP_NUM_THREADS`` leaves it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_label(labels: NDArray[np.str_]) -> Iterator[tuple[str, Any]]:
    """Yield each label with its rows; a slice (no copy) where its rows are together."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    if len(starts) == len(set(labels[starts])):
        for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True):
            yield str(labels[start]), slice(start, stop)
        return
    found, index = np.unique(labels, return_inverse=True)
    for i, label in enumerate(found):
        yield str(label), np.flatnonzero(index == i)
