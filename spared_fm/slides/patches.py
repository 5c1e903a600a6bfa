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

from spared_fm.errors import InputError
from spared_fm.slides.resample import resize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spared_fm.slides.images import ImageReader

__all__ = ["PatchReader", "PatchSpec", "UnreadablePatchError", "check_upsample"]

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


class UnreadablePatchError(InputError):
    """The pixels of one patch can't be read; those of others may well be.

    Parameters
    ----------
    reason
        One line that names the file and the damage.
    index
        Position of the patch among those asked for; None where one was asked for.
    """

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.index = index

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        return type(self), (self.reason, self.index)  # it crosses process borders with its index


def check_upsample(slide: str, upsample: float, limit: float | None) -> None:
    """Refuse a slide whose image is too coarse for the patches asked of it.

    Parameters
    ----------
    slide
        Slide id, for the message.
    upsample
        Source mpp ÷ patch mpp, :attr:`PatchReader.upsample`.
    limit
        The largest factor allowed, at least 1; None allows any.

    Raises
    ------
    InputError
        `upsample` is above `limit`, or `limit` has no meaning.
    """
    if limit is None:
        return
    if not (math.isfinite(limit) and limit >= 1):
        raise InputError(f"--max-upsample {limit:g}: give a factor of at least 1")
    if upsample > limit * (1 + _SAME):
        raise InputError(
            f"slide {slide}: its image is too coarse, patches would be enlarged {upsample:.2f}×, --max-upsample allows "
            f"{limit:g}×: ingest a finer image (--image), or ask for fewer pixels per patch (--patch-px)"
        )


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
        self._window = math.ceil(self._side + 2 * self._margin) + 1  # the same wherever the patch lies

    @property
    def achieved_mpp(self) -> float:
        """µm per pixel of the patches returned, after resampling."""
        return self._side * self._level_mpp / self.spec.px

    @property
    def upsample(self) -> float:
        """Source mpp ÷ patch mpp: above 1 the patch shows the image enlarged, with no more detail."""
        return self._level_mpp / self.spec.mpp

    def read(self, xy: np.ndarray | Iterable[tuple[float, float]], *, out: np.ndarray | None = None) -> np.ndarray:
        """Read the patches around many spots.

        Parameters
        ----------
        xy
            Float (n, 2): x and y of the centres, in the coordinates' frame.
        out
            uint8 (n, px, px, 3) to read into; by default a new array.

        Returns
        -------
        numpy.ndarray
            uint8 (n, px, px, 3), RGB.

        Raises
        ------
        UnreadablePatchError
            The image is damaged under a patch; its `index` is the first such row. Rows before it are read.
        InputError
            A centre is not finite.
        """
        centres = np.asarray(xy, np.float64)
        if centres.ndim != 2 or centres.shape[1] != 2:
            raise ValueError(f"xy must have shape (n, 2), not {centres.shape}")
        shape = (len(centres), self.spec.px, self.spec.px, 3)
        patches = np.empty(shape, np.uint8) if out is None else out
        if patches.shape != shape or patches.dtype != np.uint8:
            raise ValueError(f"out must be uint8 of shape {shape}, not {patches.dtype} of {patches.shape}")
        for index, (x, y) in enumerate(centres.tolist()):
            try:
                self.read_one(x, y, out=patches[index])
            except UnreadablePatchError as error:
                raise UnreadablePatchError(error.reason, index) from error
        return patches

    def read_one(self, x: float, y: float, *, out: np.ndarray | None = None) -> np.ndarray:
        """Read the patch around one spot: uint8 (px, px, 3). See :meth:`read`."""
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(f"{self.image.path}: a spot at ({x}, {y}): give finite coordinates")
        level = self.image.levels[self.level]
        n = self._window
        left, x0 = self._axis(x)
        top, y0 = self._axis(y)
        try:
            if x0 >= 0 and y0 >= 0 and x0 + n <= level.width and y0 + n <= level.height:
                source = self.image.read(self.level, x0, y0, n, n)
            else:
                columns, rows = (reflect(np.arange(n) + a, m) for a, m in ((x0, level.width), (y0, level.height)))
                source = self._mirrored(columns, rows)
        except InputError as error:
            raise UnreadablePatchError(str(error)) from error
        patch = np.empty((self.spec.px, self.spec.px, 3), np.uint8) if out is None else out
        resize(source, left, top, self._side, patch, self.spec.resample)
        return patch

    def _axis(self, centre: float) -> tuple[float, int]:
        """Start of the patch in the window read along one axis, and the window's first pixel in the level."""
        start = (centre + 0.5) * self._to_level - self._side / 2
        first = math.floor(start - self._margin)
        return start - first, first

    def _mirrored(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x, y = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) - x + 1, int(rows.max()) - y + 1
        box = self.image.read(self.level, x, y, width, height)
        return box[np.ix_(rows - y, columns - x)]


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Fold indexes into 0…size-1 by mirroring at both ends, as ``numpy.pad(mode="reflect")`` does."""
    if size == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * (size - 1))
    return np.minimum(folded, 2 * (size - 1) - folded)
