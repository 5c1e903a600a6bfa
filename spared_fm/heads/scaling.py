"""Centre and scale features, each slide by its own spots or all by the training spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_FEATURES, slide_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

STANDARDIZE = ("slide", "train", "none")
#: A feature that varies by less than this share of its mean is constant (float32 steps by 6e-8).
CONSTANT = 1e-12


def rounding(n: int, mean: Matrix) -> Matrix:
    """Return the centred sum of squares (d,) up to which a feature counts as constant."""
    return n * (CONSTANT * mean) ** 2


def feature_scale(X: Any, rows: NDArray[np.intp], block_rows: int = 8192) -> tuple[Matrix, ...]:
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
        with np.errstate(invalid="ignore"):
            x64 = np.subtract(X[rows[start : start + block_rows]], x0)
            total += x64.sum(axis=0)
        squares += np.einsum("ij,ij->j", x64, x64)
    if not np.isfinite(total).all():
        raise InputError(NAN_FEATURES)
    mean = total / len(rows)
    centred = squares - total * mean
    variance = np.where(centred <= rounding(len(rows), mean + x0), 0.0, centred) / len(rows)
    return mean + x0, np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)


def standardised(X: NDArray[Any], center: Matrix, scale: Matrix) -> Matrix:
    """Return ``(X - center) * scale`` in float64.

    Raises
    ------
    InputError
        NaN or infinite features, also in those that count as constant.
    """
    with np.errstate(invalid="ignore"):  # infinite features are told of below
        Z = np.subtract(X, center)
        Z *= scale
    if not np.isfinite(Z).all():
        raise InputError(NAN_FEATURES)
    return Z


def scaled_blocks(
    X: NDArray[Any], groups: Any, fixed: tuple[Matrix, Matrix] | None, block_rows: int = 8192
) -> Iterator[tuple[Any, Matrix]]:
    """Yield row numbers and their standardised features, block by block.

    Parameters
    ----------
    X
        Features (n, d).
    groups
        Slides as `row_groups` takes them.
    fixed
        Mean and 1 ÷ standard deviation (d,) for all rows; None: those of each slide in ``X``.
    block_rows
        Most rows that are held in float64 at a time.

    Yields
    ------
    rows, Z
        A slice or row numbers, and (m, d) float64.
    """
    if fixed is not None:
        for start in range(0, len(X), block_rows):
            block = slice(start, start + block_rows)
            yield block, standardised(X[block], *fixed)
        return
    for _, rows in slide_rows(groups, len(X)):
        own = feature_scale(X, rows, block_rows)
        for start in range(0, len(rows), block_rows):
            some = rows[start : start + block_rows]
            yield some, standardised(X[some], *own)
