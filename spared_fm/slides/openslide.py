"""Scanners' whole-slide formats, read by region with openslide."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numpy as np
import openslide

from spared_fm.errors import InputError
from spared_fm.slides.images import BaseReader, Level, flatten_alpha, level_downsample, plausible_mpp
from spared_fm.slides.stopwatch import stage
from spared_fm.slides.tiles import DEFAULT_CACHE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OpenSlideImage", "scanner_format"]

MAX_ANISOTROPY = 0.03
_GENERIC = "generic-tiff"  # plain tiled TIFF: tifffile reads it with exact level sizes


def scanner_format(path: Path) -> str | None:
    """Openslide's name of the scanner's format (``aperio``, ``hamamatsu``, ``mirax`` …), None where it is none."""
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None
    return None if vendor == _GENERIC else vendor


class OpenSlideImage(BaseReader):
    """A whole-slide image in a scanner's format.

    Parts of the scan area that the scanner left out are white. Openslide keeps decoded tiles itself.

    Parameters
    ----------
    path
        The image file.
    cache_bytes
        The most bytes of decoded tiles to keep.

    Raises
    ------
    InputError
        The file is damaged, or its pixels are more than 3 % wider than high or the reverse.
    """

    def __init__(self, path: Path, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.path = path
        self._cache = openslide.OpenSlideCache(cache_bytes)
        self._lock = threading.Lock()
        self._slide: openslide.OpenSlide | None = None
        self._slide = slide = self._open()
        sizes = slide.level_dimensions
        self.levels = tuple(Level(w, h, level_downsample(sizes[0], (w, h))) for w, h in sizes)
        self._steps = slide.level_downsamples  # openslide's own, which its read positions are scaled with
        self.mpp = _mpp(path, slide)
        self._read(0, 0, 0, 1, 1)

    def _open(self) -> openslide.OpenSlide:
        try:
            slide = openslide.OpenSlide(self.path)
            slide.set_cache(self._cache)
        except (openslide.OpenSlideError, OSError) as error:
            raise _damaged(self.path, error) from error
        return slide

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        slide = self._slide
        if slide is None:
            raise ValueError(f"{self.path}: the image was closed")
        step = self._steps[level]
        place = (round(x * step), round(y * step))  # whole level-0 pixels
        try:
            with stage("decode"):  # with the reading of the file, which openslide does inside
                region = slide.read_region(place, level, (width, height))  # reads run side by side in threads
        except openslide.OpenSlideError:
            # The error may be another thread's: it spoils the shared handle. A handle of our own tells.
            self._reopen(slide)
            own = self._open()
            try:
                region = own.read_region(place, level, (width, height))
            except openslide.OpenSlideError as error:
                raise _damaged(self.path, error, f" at level {level}, x {x}, y {y}") from error
            finally:
                own.close()
        rgba = np.asarray(region)  # openslide-python has divided the colours by alpha already
        return rgba[..., :3] if rgba[..., 3].min() == 255 else flatten_alpha(rgba)

    def _reopen(self, failed: openslide.OpenSlide) -> None:
        """Replace a handle after an error: openslide refuses everything on it from then on."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()
        # `failed` is not closed: another thread may be reading from it, and it is freed with its last reference

    def close(self) -> None:
        """Close the file and free decoded tiles."""
        with self._lock:
            slide, self._slide = self._slide, None
        if slide is not None:
            slide.close()


def _mpp(path: Path, slide: openslide.OpenSlide) -> float | None:
    """µm per level-0 pixel, or None where the scanner doesn't say."""
    try:
        x, y = (float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
    except (KeyError, ValueError):
        return None
    if not (x > 0 and y > 0 and math.isfinite(x) and math.isfinite(y)):
        return None
    if abs(x / y - 1) > MAX_ANISOTROPY:
        raise InputError(
            f"{path}: its pixels are {x:g} µm wide and {y:g} µm high: convert the image to square pixels, e.g. with vips"
        )
    return plausible_mpp((x + y) / 2)


def _damaged(path: Path, error: Exception, where: str = "") -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{path}: the image is damaged or can't be decoded{where} ({reason}): copy it again from its source"
    )
