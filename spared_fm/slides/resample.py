"""Resample a box with fractional bounds to a square patch: Pillow, or a compiled copy of its arithmetic."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["prepare", "resize"]

_lock = threading.Lock()
_kernel: Callable[[np.ndarray, float, float, float, np.ndarray], None] | None = None
_failed = False


def resize(source: np.ndarray, left: float, top: float, side: float, out: np.ndarray, resample: str) -> None:
    """Resize a square box of an image into `out`.

    Parameters
    ----------
    source
        uint8 (height, width, 3).
    left, top, side
        The box in pixels of the source, inside it; fractions count.
    out
        uint8 (n, n, 3), overwritten.
    resample
        Name of one of Pillow's filters, in lower case.
    """
    # Pillow 13 may take the vertical pass first where the source is higher than wide, which rounds differently
    upright = source.shape[0] > source.shape[1]
    if _kernel is not None and resample == "bicubic" and out.flags.c_contiguous and not upright:
        _kernel(source, left, top, side, out)
    else:
        _by_pillow(source, left, top, side, out, resample)


def _by_pillow(source: np.ndarray, left: float, top: float, side: float, out: np.ndarray, resample: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(source))
    box = (left, top, left + side, top + side)
    out[:] = np.asarray(image.resize((len(out), len(out)), Image.Resampling[resample.upper()], box=box))


def prepare() -> bool:
    """Compile the bicubic filter for this process, once; until then Pillow does the work.

    It costs one to two seconds and then saves about 0.4 ms per patch (three quarters of the resampling), so it
    pays from a few thousand patches per process. The pixels are the same with and without. Nothing is cached
    on disk.

    Returns
    -------
    bool
        Whether the compiled filter is in use; False where numba is not installed, doesn't work, or gives other pixels
        than the Pillow that is installed.
    """
    global _kernel, _failed
    with _lock:
        if _kernel is None and not _failed:
            try:
                from spared_fm.slides.resample_kernel import bicubic
            except (ImportError, OSError, RuntimeError):  # no numba, or none that works on this machine
                _failed = True
            else:
                _kernel, _failed = (bicubic, False) if _agrees(bicubic) else (None, True)
    return _kernel is not None


def _agrees(kernel: Callable[[np.ndarray, float, float, float, np.ndarray], None]) -> bool:
    """Whether a kernel gives the installed Pillow's pixels, enlarging and shrinking noise."""
    source = np.random.default_rng(0).integers(0, 256, (97, 97, 3), dtype=np.uint8)
    for n in (32, 150):
        ours, pillows = np.empty((2, n, n, 3), np.uint8)
        kernel(source, 5.3, 6.1, 83.7, ours)
        _by_pillow(source, 5.3, 6.1, 83.7, pillows, "bicubic")
        if not np.array_equal(ours, pillows):
            return False
    return True
