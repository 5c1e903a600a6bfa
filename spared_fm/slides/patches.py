"""Read the square of tissue around a spot, at an exact number of micrometres per pixel.

Coordinates follow scanpy's convention for Visium: x to the right, y down, in pixels, and a whole number is
the *centre* of a pixel, where ``imshow`` draws it. The pixel (10, 20) covers 9.5 to 10.5 by 19.5 to 20.5, so
a spot at (10, 20) lies 10.5 and 20.5 pixels from the image's corner. The patch is centred there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spared_fm.slides.images import ImageReader

__all__ = ["PatchReader", "PatchSpec"]

# half-width of each of Pillow's kernels, in source pixels when not shrinking
_SUPPORT = {"nearest": 0.0, "box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_SAME = 1e-6  # a level this close to the target counts as having its mpp


@dataclass(frozen=True)
class PatchSpec:
    """Size of a patch in tissue and in pixels.

    Attributes
    ----------
    um
        Side of the square, in µm of tissue.
    px
        Side of the patch that is returned, in pixels.
    resample
        Pillow's filter: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or ``lanczos``. When it
        shrinks, the filter is widened to the source pixels it covers, so that nothing aliases.

    Raises
    ------
    InputError
        A field has no meaning.
    """

    um: float = 112.0
    px: int = 224
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.um) and self.um > 0):
            raise InputError(f"patch side of {self.um} µm: give a positive number of micrometres")
        if self.px != int(self.px) or self.px < 1:
            raise InputError(f"patch side of {self.px} pixels: give a positive whole number")
        if self.resample not in _SUPPORT:
            raise InputError(f"unknown resampling {self.resample!r}: give one of {', '.join(_SUPPORT)}")

    @property
    def mpp(self) -> float:
        """µm per pixel of the patch."""
        return self.um / self.px


class PatchReader:
    """Cut patches from one image.

    The level read is the coarsest that is no coarser than the patch; level 0 where even that one is coarser.
    The window is a box with fractional bounds exactly `spec.um` wide, and one resampling takes it to
    `spec.px` pixels, so the mpp is exact and nothing is shifted to whole pixels on the way. Beyond the image
    its mirror image is read (numpy's ``reflect``: the border pixel itself is not repeated), as often as it
    takes.

    Parameters
    ----------
    image
        An open image. Stays open: its owner closes it.
    mpp
        µm per pixel of the frame the spots' coordinates are in.
    spec
        The patch.
    scale
        Level-0 pixels of `image` per pixel of the coordinates' frame: 1.0 when they are the same, and
        ``tissue_hires_scalef`` for Space Ranger's hires image, whose spots are in full-resolution pixels.

    Raises
    ------
    InputError
        `mpp` or `scale` is not a positive number.
    """

    def __init__(self, image: ImageReader, mpp: float, spec: PatchSpec, *, scale: float = 1.0) -> None:
        for name, value in (("mpp", mpp), ("scale", scale)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{image.path}: {name} of {value}: give a positive number")
        self.image = image
        self.spec = spec
        mpps = [mpp / scale * level.downsample for level in image.levels]
        fine_enough = [i for i, m in enumerate(mpps) if m <= spec.mpp * (1 + _SAME)]
        self.level = max(fine_enough, key=lambda i: mpps[i], default=0)
        self._level_mpp = mpps[self.level]
        self._to_level = scale / image.levels[self.level].downsample
        self._side = spec.um / self._level_mpp
        self._margin = _SUPPORT[spec.resample] * max(1.0, self._side / spec.px) + 1.0
        self._filter = Image.Resampling[spec.resample.upper()]

    @property
    def achieved_mpp(self) -> float:
        """µm per pixel of the patches returned, after resampling."""
        return self._side * self._level_mpp / self.spec.px

    @property
    def upsample(self) -> float:
        """Source mpp ÷ patch mpp: above 1 the patch shows the image enlarged, with no more detail."""
        return self._level_mpp / self.spec.mpp

    def read(self, xy: np.ndarray | Iterable[tuple[float, float]]) -> np.ndarray:
        """Read the patches around many spots.

        Parameters
        ----------
        xy
            Float (n, 2): x and y of the centres, in the coordinates' frame.

        Returns
        -------
        numpy.ndarray
            uint8 (n, px, px, 3), RGB.

        Raises
        ------
        InputError
            A centre is not finite, or the image is damaged there.
        """
        centres = np.asarray(xy, np.float64)
        if centres.ndim != 2 or centres.shape[1] != 2:
            raise ValueError(f"xy must have shape (n, 2), not {centres.shape}")
        patches = np.empty((len(centres), self.spec.px, self.spec.px, 3), np.uint8)
        for patch, (x, y) in zip(patches, centres, strict=True):
            patch[:] = self.read_one(float(x), float(y))
        return patches

    def read_one(self, x: float, y: float) -> np.ndarray:
        """Read the patch around one spot: uint8 (px, px, 3). See :meth:`read`."""
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(f"{self.image.path}: a spot at ({x}, {y}): give finite coordinates")
        level = self.image.levels[self.level]
        left, columns = self._axis(x, level.width)
        top, rows = self._axis(y, level.height)
        source = self._gather(columns, rows)
        box = (left, top, left + self._side, top + self._side)
        patch = Image.fromarray(source).resize((self.spec.px, self.spec.px), self._filter, box=box)
        return np.asarray(patch)

    def _axis(self, centre: float, size: int) -> tuple[float, np.ndarray]:
        """Start of the window in the pixels read along one axis, and which pixels of the level those are."""
        start = (centre + 0.5) * self._to_level - self._side / 2
        first = math.floor(start - self._margin)
        last = math.ceil(start + self._side + self._margin)
        return start - first, reflect(np.arange(first, last), size)

    def _gather(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x, y = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) - x + 1, int(rows.max()) - y + 1
        box = self.image.read(self.level, x, y, width, height)
        if width == len(columns) and height == len(rows) and columns[0] == x and rows[0] == y:
            return np.ascontiguousarray(box)  # wholly inside: nothing to mirror
        return box[np.ix_(rows - y, columns - x)]


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Fold indexes into 0…size-1 by mirroring at both ends, as ``numpy.pad(mode="reflect")`` does."""
    if size == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * (size - 1))
    return np.minimum(folded, 2 * (size - 1) - folded)
