"""Open an image of tissue and read boxes of it as 8-bit RGB.

Everything downstream sees one small protocol, :class:`ImageReader`. Which library decodes the file is decided here: a
scanner's format, known by its name, goes to openslide if it agrees; anything else by its first bytes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
from PIL import Image

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ImageReader", "Level", "image_size", "open_image", "thumbnail"]

MAX_PIXELS_ENV = "SPARED_FM_MAX_PIXELS"
DEFAULT_MAX_PIXELS = 2_000_000_000
#: µm per pixel that a file's own tag may claim. 72 dpi (353 µm) and other editors' defaults fall outside.
PLAUSIBLE_MPP = (0.05, 20.0)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_MAGIC, _PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: Scanners' formats, which openslide is asked about.
WHOLE_SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".czi", ".svslide"})
_BAND_PIXELS = 8_000_000  # rows are read in bands of about this many pixels, to bound memory


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    width, height
        Size in pixels of this level.
    downsample
        Level-0 pixels per pixel of this level; 1.0 for level 0.
    """

    width: int
    height: int
    downsample: float


@runtime_checkable
class ImageReader(Protocol):
    """What the rest of the package knows of an image.

    Attributes
    ----------
    path
        The file.
    levels
        From the finest (level 0) to the coarsest.
    mpp
        µm per level-0 pixel from the image's own metadata, None when absent or implausible.
    """

    path: Path
    levels: tuple[Level, ...]
    mpp: float | None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a box inside a level: uint8 (height, width, 3) RGB. Safe to call from several threads."""
        ...

    def close(self) -> None:
        """Release the file and the memory held."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BaseReader(ABC):
    """Bounds checks and the context manager that all readers share."""

    path: Path
    levels: tuple[Level, ...]
    mpp: float | None

    @abstractmethod
    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a box known to lie inside the level."""

    @abstractmethod
    def close(self) -> None:
        """Release the file and the memory held."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a box of one level.

        Parameters
        ----------
        level
            Index into `levels`.
        x, y
            Left and top pixel of the box, in pixels of that level.
        width, height
            Size of the box, at least 1, in pixels of that level.

        Returns
        -------
        numpy.ndarray
            uint8, (height, width, 3), RGB. May be a read-only view: copy before writing to it.

        Raises
        ------
        ValueError
            The level doesn't exist or the box leaves it.
        InputError
            The file is damaged there.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"{self.path}: no level {level}, it has {len(self.levels)}")
        size = self.levels[level]
        if min(x, y) < 0 or min(width, height) < 1 or x + width > size.width or y + height > size.height:
            raise ValueError(
                f"{self.path}: box x={x} y={y} {width}×{height} is not inside level {level}, {size.width}×{size.height}"
            )
        return self._read(level, x, y, width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def plausible_mpp(value: float) -> float | None:
    """Return `value` if it can be a slide's µm per pixel (0.05 to 20), else None."""
    low, high = PLAUSIBLE_MPP
    return float(value) if low <= value <= high else None


def level_downsample(top: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 pixels per pixel; a whole number where the sizes are that quotient rounded either way."""
    ratio = (top[0] / size[0] + top[1] / size[1]) / 2
    whole = max(1, round(ratio))
    exact = all(t // whole <= s <= -(-t // whole) for t, s in zip(top, size, strict=True))
    return float(whole) if exact else ratio


def flatten_alpha(rgba: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """Lay RGBA over white, the colour of empty glass.

    Parameters
    ----------
    rgba
        uint8 (…, 4).
    premultiplied
        Whether the colours were already multiplied with alpha.

    Returns
    -------
    numpy.ndarray
        uint8 (…, 3).
    """
    alpha = rgba[..., 3:].astype(np.uint16)
    colour = rgba[..., :3].astype(np.uint16)
    weighted = colour * 255 if premultiplied else colour * alpha
    # a premultiplied colour above its alpha is damaged; clip rather than wrap round
    return np.minimum((weighted + 255 * (255 - alpha) + 127) // 255, 255).astype(np.uint8)


def to_uint8(values: np.ndarray, maximum: int) -> np.ndarray:
    """Scale unsigned integers from 0…`maximum` to uint8 0…255, rounding to nearest."""
    if maximum == 255:
        return values.astype(np.uint8, copy=False)
    scaled = (values.astype(np.uint32) * 255 + maximum // 2) // maximum
    return np.minimum(scaled, 255).astype(np.uint8)


def open_image(path: str | Path, *, max_pixels: int | None = None) -> ImageReader:
    """Open a JPEG, a PNG, a TIFF or a scanner's whole-slide image.

    Scanners' formats (Hamamatsu .ndpi, MIRAX .mrxs, Leica .scn, Ventana .bif, Zeiss .czi …) are read with openslide;
    Aperio's .svs is a tiled TIFF, which tifffile reads faster and without interpolating between levels. JPEG and PNG are
    decoded once, into memory. Tiled TIFFs are read by region, uncompressed contiguous ones are mapped, other untiled
    ones are decoded once. Alpha is laid over white; grey becomes RGB; 16-bit values are scaled to 8 bits over their full
    range. An EXIF orientation is not applied: spots are given in stored pixels.

    Parameters
    ----------
    path
        The image file.
    max_pixels
        The most pixels that may be decoded into memory at once (a whole JPEG, PNG or untiled TIFF page, or
        one TIFF tile). Default: the environment variable ``SPARED_FM_MAX_PIXELS``, else 2,000,000,000.

    Returns
    -------
    ImageReader
        Use it as a context manager, or call `close()`. Several threads may read from it at once.

    Raises
    ------
    InputError
        The file is missing, empty, not an image, damaged, truncated or larger than `max_pixels`.
    """
    path = Path(path)
    limit = _pixel_limit(max_pixels)
    kind = _kind(path)
    if kind == "openslide":
        from spared_fm.slides.openslide import OpenSlideImage

        return OpenSlideImage(path)
    if kind in {"tiff", "aperio"}:
        from spared_fm.slides.tiff import TiffImage

        image = TiffImage(path, limit)
        if kind == "tiff" or not image.sparse:
            return image
        image.close()  # openslide knows what belongs into the tiles that a scanner left out
        from spared_fm.slides.openslide import OpenSlideImage

        return OpenSlideImage(path)
    from spared_fm.slides.raster import RasterImage

    return RasterImage(path, limit)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of level 0, from the header alone.

    Raises
    ------
    InputError
        The file is missing, empty or not an image.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "openslide":
        with open_image(path) as reader:
            return reader.levels[0].width, reader.levels[0].height
    if kind in {"tiff", "aperio"}:
        from spared_fm.slides.tiff import tiff_size

        return tiff_size(path)
    from spared_fm.slides.raster import raster_size

    return raster_size(path)


def thumbnail(reader: ImageReader, max_px: int) -> tuple[np.ndarray, float]:
    """Shrink the whole image so that its longer side has at most `max_px` pixels; never enlarge it.

    Reads the coarsest level that is still large enough, in bands of rows, so that memory stays bounded.

    Parameters
    ----------
    reader
        An open image.
    max_px
        The longer side of the thumbnail, in pixels.

    Returns
    -------
    thumb : numpy.ndarray
        uint8 (h, w, 3).
    scale : float
        Thumbnail pixels per level-0 pixel, exact along the longer side.
    """
    if max_px < 1:
        raise InputError(f"a thumbnail needs at least 1 pixel, not {max_px}")
    top = reader.levels[0]
    scale = min(1.0, max_px / max(top.width, top.height))
    width, height = max(1, round(top.width * scale)), max(1, round(top.height * scale))
    scale = width / top.width if top.width >= top.height else height / top.height
    fits = [i for i, level in enumerate(reader.levels) if level.width >= width and level.height >= height]
    index = max(fits, key=lambda i: reader.levels[i].downsample)
    level = reader.levels[index]
    # box-average by whole factors while reading, then one exact resize; a factor of 2 is left to the resize
    factor = max(1, int(min(level.width / width, level.height / height) / 2))
    rows = max(1, _BAND_PIXELS // (level.width * factor)) * factor
    bands = []
    for y in range(0, level.height, rows):
        band = reader.read(index, 0, y, level.width, min(rows, level.height - y))
        bands.append(np.asarray(Image.fromarray(band).reduce(factor)) if factor > 1 else band)
    small = np.concatenate(bands) if len(bands) > 1 else bands[0]
    if small.shape[:2] == (height, width):
        return np.array(small), scale
    box = (0.0, 0.0, level.width / factor, level.height / factor)
    shrunk = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.array(shrunk), scale


def _pixel_limit(max_pixels: int | None) -> int:
    if max_pixels is not None:
        return int(max_pixels)
    text = os.environ.get(MAX_PIXELS_ENV, "")
    if not text:
        return DEFAULT_MAX_PIXELS
    try:
        limit = int(text)
    except ValueError:
        limit = 0
    if limit < 1:
        raise InputError(f"{MAX_PIXELS_ENV}={text!r} is not a number of pixels: set a positive whole number")
    return limit


def check_pixels(path: Path, width: int, height: int, limit: int) -> None:
    """Refuse to decode more than `limit` pixels into memory at once."""
    if width * height > limit:
        raise InputError(
            f"{path}: {width}×{height} = {width * height:,} pixels would be decoded at once, the limit is "
            f"{limit:,}: raise max_pixels ({MAX_PIXELS_ENV}), or convert the image to a tiled TIFF"
        )


def _kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image: check the path") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: the image can't be read ({reason}): check the path and its rights") from error
    if not head:
        raise InputError(f"{path}: the image is empty (0 bytes): copy it again")
    if path.suffix.lower() in WHOLE_SLIDE_SUFFIXES:
        from spared_fm.slides.openslide import scanner_format

        vendor = scanner_format(path)
        if vendor is not None:
            return "aperio" if vendor == "aperio" else "openslide"
    if head[:4] in _TIFF_MAGIC:
        return "tiff"
    if head[:3] == _JPEG_MAGIC:
        return "jpeg"
    if head == _PNG_MAGIC:
        return "png"
    if path.suffix.lower() in WHOLE_SLIDE_SUFFIXES:
        raise InputError(
            f"{path}: not a whole-slide image that openslide knows: copy it again, with the files beside it"
        )
    raise InputError(f"{path}: not a JPEG, PNG or TIFF image: convert it, or copy it again if it is one")
