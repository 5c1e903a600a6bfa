"""First and second moments of features and targets per slide, gathered in one pass: all that ridge needs.

Everything is float64. Rows are shifted by the first row of their slide before they are multiplied, so that
features with a large common offset do not lose their digits and a constant feature has a variance of exactly
zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import Block, check_features, check_targets, row_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

#: A feature that varies by less than this share of its mean is constant (float32 steps by 6e-8).
CONSTANT = 1e-12


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
        xx = self.xx - np.outer(ox, sx - n * ox / 2)
        xx -= np.outer(sx - n * ox / 2, ox)
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


class _Slide:
    """The running sums of one slide, about its first row."""

    def __init__(self, x0: NDArray[Any], y0: NDArray[Any]) -> None:
        d, g = len(x0), len(y0)
        self.x0, self.y0 = x0.astype(np.float64), y0.astype(np.float64)
        self.sums = Moments(0, np.zeros(d), np.zeros(g), np.zeros((d, d)), np.zeros((d, g)), np.zeros(g))

    def add(self, X: NDArray[Any], y: NDArray[Any]) -> None:
        x64, y64 = X.astype(np.float64), y.astype(np.float64)
        x64 -= self.x0
        y64 -= self.y0
        s = self.sums
        s.n += len(x64)
        s.sx += x64.sum(axis=0)
        s.sy += y64.sum(axis=0)
        if not np.isfinite(s.sx).all():
            raise InputError("features hold NaN or infinite values: encode the missing patches or drop their spots")
        if not np.isfinite(s.sy).all():
            raise InputError("targets hold NaN or infinite values: drop those spots or complete the layer first")
        s.xx += x64.T @ x64
        s.xy += x64.T @ y64
        s.yy += np.einsum("ij,ij->j", y64, y64)

    def centred(self) -> tuple[Moments, NDArray[np.float64], NDArray[np.float64]]:
        """Return the sums about the slide's own means, and the means."""
        s = self.sums
        mx, my = s.sx / s.n, s.sy / s.n
        out = s.about(mx, my)
        out.drop(np.diagonal(out.xx) <= rounding(s.n, mx + self.x0))
        out.sx[:] = 0.0
        out.sy[:] = 0.0
        np.maximum(out.yy, 0.0, out=out.yy)
        return out, mx + self.x0, my + self.y0


def gather(blocks: Iterable[Block], block_rows: int) -> dict[str, _Slide]:
    """Read every block once and return the running sums of each slide, by label.

    Parameters
    ----------
    blocks
        ``(X, y, slide)``: features (m, d), targets (m, genes), one label or one per row. Blocks longer than
        ``block_rows`` are read piecewise. Memory: one piece, plus 8·d·(d + genes) bytes per slide.
    block_rows
        Most rows that are held in float64 at a time.

    Raises
    ------
    InputError
        No rows at all, shapes that do not fit together, NaN or infinite values.
    """
    slides: dict[str, _Slide] = {}
    shape: tuple[int, int] | None = None
    for X, y, slide in blocks:
        X = check_features(X, None if shape is None else shape[0])
        y = check_targets(y, len(X))
        shape = shape or (X.shape[1], y.shape[1])
        if y.shape[1] != shape[1]:
            raise InputError(f"a block has {y.shape[1]} genes, the first had {shape[1]}: use one gene panel")
        labels = row_labels(slide, len(X))
        for start in range(0, len(X), block_rows):
            rows = slice(start, start + block_rows)
            for label, picked in _by_label(labels[rows]):
                x, t = X[rows][picked], y[rows][picked]
                slides.setdefault(label, _Slide(x[0], t[0])).add(x, t)
    if shape is None or not slides:
        raise InputError("no training spots: give the split at least one train slide with spots")
    if 0 in shape:
        raise InputError(f"features have {shape[0]} columns and targets {shape[1]} genes: neither may be empty")
    return slides


def _by_label(labels: NDArray[np.str_]) -> Iterator[tuple[str, Any]]:
    """Yield each label with its rows; a slice (no copy) when there is one label."""
    found, index = np.unique(labels, return_inverse=True)
    for i, label in enumerate(found):
        yield str(label), slice(None) if len(found) == 1 else np.flatnonzero(index == i)


def rounding(n: int, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred sum of squares (d,) up to which a feature counts as constant."""
    return n * (CONSTANT * mean) ** 2


def feature_scale(X: Any, rows: NDArray[np.intp], block_rows: int) -> tuple[NDArray[np.float64], ...]:
    """Return mean and 1 ÷ standard deviation of the features over some rows, by the rules of the fit.

    Parameters
    ----------
    X
        Features (n, d).
    rows
        Row numbers of one slide, at least one.
    block_rows
        Most rows that are held in float64 at a time.

    Returns
    -------
    mean, inverse_std
        (d,) float64 each; 0 in ``inverse_std`` marks a constant feature.
    """
    x0 = X[rows[0]].astype(np.float64)
    total, squares = np.zeros_like(x0), np.zeros_like(x0)
    for start in range(0, len(rows), block_rows):
        x64 = X[rows[start : start + block_rows]].astype(np.float64)
        x64 -= x0
        total += x64.sum(axis=0)
        squares += np.einsum("ij,ij->j", x64, x64)
    if not np.isfinite(total).all():
        raise InputError("features hold NaN or infinite values: encode the missing patches or drop their spots")
    mean = total / len(rows)
    centred = squares - total * mean
    variance = np.where(centred <= rounding(len(rows), mean + x0), 0.0, centred) / len(rows)
    return mean + x0, np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)
