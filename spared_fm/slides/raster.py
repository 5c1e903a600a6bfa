"""JPEG and PNG, decoded once with Pillow and kept in memory as 8-bit RGB."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from spared_fm.errors import InputError
from spared_fm.slides.images import BaseReader, Level, check_pixels, flatten_alpha, to_uint8
from spared_fm.slides.stopwatch import stage

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

# what Pillow raises for a damaged file, depending on where the damage is
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    struct.error,
    zlib.error,
)
_BAND_PIXELS = 4_000_000
_TAIL_BYTES = 65_536


class RasterImage(BaseReader):
    """A JPEG or PNG. It has one level and no mpp: its dpi is an editor's default, not a measurement.

    Parameters
    ----------
    path
        The image file.
    max_pixels
        The most pixels to decode.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path = path
        self.mpp = None
        pixels: np.ndarray | None = None
        try:
            # The plugin is called directly: PIL.Image.open applies a pixel limit global to the process.
            with _open(path) as image:
                check_pixels(path, *image.size, max_pixels)
                _check_whole(path, image)
                with stage("decode"):
                    pixels = _decode(image)
        except InputError:
            raise
        except _DECODE_ERRORS as error:
            raise _damaged(path, error) from error
        self._pixels: np.ndarray | None = pixels
        self.levels = (Level(pixels.shape[1], pixels.shape[0], 1.0),)

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        pixels = self._pixels
        if pixels is None:
            raise ValueError(f"{self.path}: the image was closed")
        return pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = None


def raster_size(path: Path) -> tuple[int, int]:
    """Width and height of a JPEG or PNG, from its header."""
    try:
        with _open(path) as image:
            return image.size
    except _DECODE_ERRORS as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> JpegImageFile | PngImageFile:
    with path.open("rb") as file:
        plugin = PngImageFile if file.read(1) == b"\x89" else JpegImageFile
    return plugin(path)


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: the image is damaged or truncated ({reason}): copy it again from its source")


def _check_whole(path: Path, image: JpegImageFile | PngImageFile) -> None:
    """Refuse a file whose end is missing, also where other code has told Pillow to pad such files grey."""
    if isinstance(image, PngImageFile):
        with PngImageFile(path) as copy:
            copy.verify()  # every chunk's CRC; uses the file up, hence a copy of our own
        return
    with path.open("rb") as file:
        file.seek(-min(_TAIL_BYTES, path.stat().st_size), 2)
        if b"\xff\xd9" not in file.read():
            raise OSError("no end-of-image marker")


def _decode(image: JpegImageFile | PngImageFile) -> np.ndarray:
    """Decode to uint8 (height, width, 3), converting in bands so that only one full copy is made."""
    image.load()
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for y in range(0, height, rows):
        stop = min(y + rows, height)
        pixels[y:stop] = _rgb(image.crop((0, y, width, stop)))
    pixels.flags.writeable = False
    return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey
        grey = to_uint8(np.asarray(image).astype(np.uint16), 65_535)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        return flatten_alpha(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))
