"""Pillow's bicubic resampling of 8-bit RGB, compiled for vector units. Import it only through `resample`.

The arithmetic is Pillow's own (double-precision weights rounded to 22 bits, sums of 32-bit integers, a rounded
8-bit image between the two passes), so every pixel is the same; tests compare the two. It is faster because both
passes run along contiguous memory: the image is turned before and after the horizontal one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

_BITS = 22
_HALF = np.int32(1 << (_BITS - 1))
_SHIFT, _ZERO, _MAX = np.int32(_BITS), np.int32(0), np.int32(255)
_ANY_IMAGE = types.Array(types.uint8, 3, "A", readonly=True)
_IMAGE = types.Array(types.uint8, 3, "C")
_ROWS = types.Array(types.uint8, 2, "C")
_INTS, _TABLE = types.Array(types.int32, 1, "C"), types.Array(types.int32, 2, "C")
_FAST: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # threads run it side by side


@njit([types.void(types.int64, types.float64, types.float64, types.float64, _INTS, _INTS, _TABLE)], **_FAST)
def _weights(size, start, scale, stretch, first, count, fixed):  # type: ignore[no-untyped-def]
    """First source index, number of taps and fixed-point weights of each output pixel along one axis."""
    exact = np.empty(fixed.shape[1], np.float64)
    support = 2.0 * stretch
    for i in range(len(first)):
        centre = start + (i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), size)
        total = 0.0
        for k in range(high - low):
            x = abs((k + low - centre + 0.5) * (1.0 / stretch))
            if x < 1.0:
                weight = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                weight = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
            else:
                weight = 0.0
            exact[k] = weight
            total += weight
        for k in range(high - low):
            value = exact[k] / total * (1 << _BITS)
            fixed[i, k] = int(value - 0.5) if value < 0 else int(value + 0.5)
        first[i], count[i] = low, high - low


@njit([types.void(_ROWS, _INTS, _INTS, _TABLE, _INTS, _ROWS)], **_FAST)
def _blend_rows(source, first, count, fixed, sums, out):  # type: ignore[no-untyped-def]
    """Make each row of `out` a weighted sum of rows of `source`."""
    n = source.shape[1]
    for i in range(out.shape[0]):
        for j in range(n):
            sums[j] = _HALF
        for k in range(count[i]):
            weight, at = fixed[i, k], first[i] + k
            for j in range(n):
                sums[j] = np.int32(sums[j] + np.int32(np.int32(source[at, j]) * weight))
        for j in range(n):
            out[i, j] = np.uint8(min(max(np.int32(sums[j] >> _SHIFT), _ZERO), _MAX))


@njit([types.void(_ANY_IMAGE, _IMAGE)], **_FAST)
def _turn(source, out):  # type: ignore[no-untyped-def]
    """Copy (a, b, 3) to (b, a, 3), in blocks that stay in the first cache."""
    for a0 in range(0, source.shape[0], 16):
        a1 = min(a0 + 16, source.shape[0])
        for b0 in range(0, source.shape[1], 16):
            for b in range(b0, min(b0 + 16, source.shape[1])):
                for a in range(a0, a1):
                    out[b, a, 0] = source[a, b, 0]
                    out[b, a, 1] = source[a, b, 1]
                    out[b, a, 2] = source[a, b, 2]


def bicubic(source: np.ndarray, left: float, top: float, side: float, out: np.ndarray) -> None:
    """Resample a square box of `source` into `out`.

    Parameters
    ----------
    source
        uint8 (height, width, 3), any strides; not higher than wide, see `resample.resize`.
    left, top, side
        The box in pixels of the source, inside it.
    out
        uint8 (n, n, 3), contiguous; overwritten.
    """
    (height, width, _), n = source.shape, len(out)
    sums = np.empty(3 * max(height, n), np.int32)
    turned = np.empty((width, height, 3), np.uint8)
    narrow = np.empty((n, height, 3), np.uint8)
    upright = np.empty((height, n, 3), np.uint8)
    _turn(source, turned)
    _blend_rows(turned.reshape(width, -1), *_axis(width, left, side, n), sums, narrow.reshape(n, -1))
    _turn(narrow, upright)
    _blend_rows(upright.reshape(height, -1), *_axis(height, top, side, n), sums, out.reshape(n, -1))


def _axis(size: int, start: float, side: float, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = np.float32(start), np.float32(start + side)  # as Pillow takes a box
    scale = float(high - low) / n
    stretch = max(scale, 1.0)
    first, count = np.empty(n, np.int32), np.empty(n, np.int32)
    fixed = np.empty((n, math.ceil(2.0 * stretch) * 2 + 1), np.int32)
    _weights(size, float(low), scale, stretch, first, count, fixed)
    return first, count, fixed
