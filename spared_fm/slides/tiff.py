"""TIFF, BigTIFF, OME-TIFF and the TIFF-based whole-slide formats, read by region with tifffile."""

from __future__ import annotations

import logging
import os
import struct
import threading
import weakref
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TIFF, TiffFile, TiffFileError, TiffPage

from spared_fm.errors import InputError
from spared_fm.slides.images import BaseReader, Level, check_pixels, flatten_alpha, level_downsample, to_uint8
from spared_fm.slides.pixelsize import tiff_mpp
from spared_fm.slides.stopwatch import stage
from spared_fm.slides.tiles import DEFAULT_CACHE_BYTES, TileCache

if TYPE_CHECKING:
    from pathlib import Path

    from tifffile import FileHandle, TiffPageSeries

# what tifffile and the codecs raise for a damaged file (imagecodecs' errors are RuntimeErrors)
_ERRORS = (
    OSError, TiffFileError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError,
    struct.error, zlib.error,
)  # fmt: skip
_BASELINE_JPEG = {COMPRESSION.JPEG, COMPRESSION.ALT_JPEG}
_ANY_JPEG = _BASELINE_JPEG | {COMPRESSION.OJPEG, 34892}
_EOI = b"\xff\xd9"
_PREAD = hasattr(os, "pread")  # not on Windows, where threads take turns
_seek_lock = threading.Lock()
# tifffile logs what it also raises; without this, a user with no handler would see it twice on stderr
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffImage(BaseReader):
    """A TIFF of one RGB or grey plane, with as many levels as its pyramid has.

    Parameters
    ----------
    path
        The image file.
    max_pixels
        The most pixels to decode at once: one tile, or one untiled page that can't be mapped.
    cache_bytes
        The most bytes of decoded tiles to keep; neighbouring patches share tiles.
    """

    def __init__(self, path: Path, max_pixels: int, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.path = path
        self._tiff: TiffFile | None = None
        self._planes: list[list[_Plane]] = []
        self._cache = TileCache(cache_bytes)
        try:
            self._tiff = TiffFile(path)
            weakref.finalize(self, self._tiff.close)  # a reader that falls out of a worker's cache has no other end
            _check_chain(self._tiff, path)
            series = _series(self._tiff, path)
            self._planes = [_planes(path, level, self._cache, max_pixels) for level in series.levels]
            sizes = [(planes[0].width, planes[0].height) for planes in self._planes]
            self.levels = tuple(Level(w, h, level_downsample(sizes[0], (w, h))) for w, h in sizes)
            self.mpp = tiff_mpp(self._tiff, series)
            self._read(0, 0, 0, 1, 1)  # refuse an unsupported codec or a damaged start here, not midway
        except _ERRORS as error:
            self.close()
            if isinstance(error, InputError):
                raise
            raise _damaged(path, error) from error

    @property
    def sparse(self) -> bool:
        """Whether the file leaves tiles out."""
        return any(0 in plane.page.databytecounts for planes in self._planes for plane in planes)

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self._tiff is None:
            raise ValueError(f"{self.path}: the image was closed")
        planes = self._planes[level]
        blocks = [plane.read(x, y, width, height) for plane in planes]
        block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=2)
        return _rgb(block, planes[0].page)

    def close(self) -> None:
        """Close the file and free decoded pages."""
        self._planes = []
        self._cache.clear()
        if self._tiff is not None:
            self._tiff.close()
            self._tiff = None


def tiff_size(path: Path) -> tuple[int, int]:
    """Width and height of level 0, from the header."""
    try:
        with TiffFile(path) as tiff:
            _check_chain(tiff, path)
            page = _series(tiff, path).levels[0].keyframe
            return int(page.imagewidth), int(page.imagelength)
    except InputError:
        raise
    except _ERRORS as error:
        raise _damaged(path, error) from error


class _Plane:
    """One page of a TIFF as raw samples, (height, width, samples)."""

    def __init__(self, path: Path, page: TiffPage, cache: TileCache, max_pixels: int) -> None:
        self.path, self.page, self._cache = path, page, cache
        self._file = page.parent.filehandle  # a multi-file OME-TIFF keeps pages in other files
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.separate = int(page.shaped[0])  # samples stored one after the other (PlanarConfiguration 2)
        self.samples = self.separate * int(page.shaped[4])
        if page.is_tiled:
            self._segment_size = int(page.tilewidth), int(page.tilelength)
        else:
            self._segment_size = self.width, min(int(page.rowsperstrip), self.height)
        self._across = -(-self.width // self._segment_size[0])
        self._down = -(-self.height // self._segment_size[1])
        self._check_whole()
        self._whole: np.ndarray | None = None
        self._whole_lock = threading.Lock()
        if page.is_memmappable and not page.is_tiled and page.dtype is not None:
            dtype = np.dtype(page.parent.byteorder + page.dtype.char)
            start, shape = int(page.dataoffsets[0]), tuple(page.shaped)
            self._whole = _interleave(np.memmap(self._file.path, dtype, "r", start, shape))
        else:
            check_pixels(path, *(self._segment_size if page.is_tiled else (self.width, self.height)), max_pixels)
        self._decode = page.decode  # built once here: building it is not thread-safe
        self._decode_args: dict[str, Any] = {}
        if page.compression in _ANY_JPEG:
            self._decode_args = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}

    def _check_whole(self) -> None:
        # damaged tags may leave these lists of different lengths
        ends = [o + n for o, n in zip(self.page.dataoffsets, self.page.databytecounts, strict=False)]
        if len(ends) < self._across * self._down * self.separate or max(ends) > self._file.size:
            raise InputError(
                f"{self.path}: the image is truncated ({self._file.size:,} bytes, its pixels should end at "
                f"{max(ends, default=0):,}): copy it again from its source"
            )

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self.page.is_tiled:
            return self._gather(x, y, width, height)
        with self._whole_lock:
            whole = self._whole
            if whole is None:
                whole = self._whole = self._gather(0, 0, self.width, self.height)
        return whole[y : y + height, x : x + width]

    def _gather(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Decode the tiles or strips that touch the box and copy their parts of it."""
        seg_w, seg_h = self._segment_size
        per_plane = self.samples // self.separate
        out = np.empty((height, width, self.samples), self.page.dtype)
        for plane in range(self.separate):
            channels = slice(plane * per_plane, (plane + 1) * per_plane)
            for row in range(y // seg_h, (y + height - 1) // seg_h + 1):
                top = row * seg_h
                y0, y1 = max(y, top), min(y + height, top + seg_h)
                for col in range(x // seg_w, (x + width - 1) // seg_w + 1):
                    left = col * seg_w
                    x0, x1 = max(x, left), min(x + width, left + seg_w)
                    segment = self._cached((plane * self._down + row) * self._across + col)
                    part = self.page.nodata if segment is None else segment[y0 - top : y1 - top, x0 - left : x1 - left]
                    out[y0 - y : y1 - y, x0 - x : x1 - x, channels] = part
        return out

    def _cached(self, index: int) -> np.ndarray | None:
        if not self.page.is_tiled:
            return self._segment(index)  # its page is kept whole
        return self._cache.get((id(self), index), lambda: self._segment(index))

    def _segment(self, index: int) -> np.ndarray | None:
        """Decode one tile or strip; None where a sparse file stores nothing."""
        offset, count = self.page.dataoffsets[index], self.page.databytecounts[index]
        if count == 0:
            return None
        try:
            with stage("read"):
                data = _read_at(self._file, offset, count)
            # libjpeg fills what is missing with grey and says nothing
            if self.page.compression in _BASELINE_JPEG and _EOI not in data[-64:]:
                raise ValueError("no end-of-image marker")
            with stage("decode"):
                pixels = np.asarray(self._decode(data, index, **self._decode_args)[0])
        except _ERRORS as error:
            what = "tile" if self.page.is_tiled else "strip"
            raise _damaged(self.path, error, f"{what} {index} of page {self.page.index}") from error
        return pixels[0]


def _read_at(file: FileHandle, offset: int, count: int) -> bytes:
    """Read bytes without moving the file's position, so that threads need not take turns."""
    if _PREAD:
        data = os.pread(file.fileno(), count, offset)
        while 0 < len(data) < count:  # a network file system may give less than asked
            more = os.pread(file.fileno(), count - len(data), offset + len(data))
            if not more:
                break
            data += more
    else:
        with _seek_lock:
            file.seek(offset)
            data = file.read(count)
    if len(data) < count:
        raise ValueError("the file ends before it")
    return data


def _interleave(normalized: np.ndarray) -> np.ndarray:
    """View tifffile's (separate, depth, height, width, contiguous) as (height, width, samples)."""
    separate, _, height, width, contiguous = normalized.shape
    if separate == 1:
        return normalized.reshape(height, width, contiguous)
    return np.moveaxis(normalized.reshape(separate, height, width), 0, 2)


def _check_chain(tiff: TiffFile, path: Path) -> None:
    """Refuse a file whose last pages are cut off: tifffile passes over them, and a pyramid would silently lose levels."""
    file, form = tiff.filehandle, tiff.tiff
    pages = [page.aspage() for page in tiff.pages]  # walks the chain as far as it goes
    if not pages:
        return
    offset = int(pages[-1].offset)
    file.seek(offset)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(offset + form.tagnosize + tags * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    ends = [int(following), *(int(sub) for page in pages for sub in page.subifds or ())]
    pages += [sub.aspage() for page in pages if page.subifds for sub in page.pages or ()]  # raises where one is torn
    ends += [o + n for page in pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if following or max(ends) > file.size:
        raise InputError(
            f"{path}: the image is truncated ({file.size:,} bytes, something should be at {max(ends):,}): copy it again "
            "from its source"
        )


def _series(tiff: TiffFile, path: Path) -> TiffPageSeries:
    """Return the series with the largest page: labels, macros and thumbnails are smaller."""
    series = [s for s in tiff.series if s.keyframe.imagewidth and s.keyframe.imagelength]
    if not series:
        raise InputError(f"{path}: the TIFF holds no image: copy it again from its source")
    return max(series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)


def _planes(path: Path, level: TiffPageSeries, cache: TileCache, max_pixels: int) -> list[_Plane]:
    pages = [page.aspage() for page in level.pages if page is not None]
    first = pages[0]
    # one page, or red, green and blue as a page each
    samples = len(pages) * first.samplesperpixel
    if not (len(pages) == 1 or samples == len(pages) == 3) or first.shaped[1] != 1:
        raise InputError(
            f"{path}: {len(pages)} planes (axes {level.axes}, shape {level.shape}): "
            "give an image of one RGB or grey plane, e.g. export the plane you need"
        )
    if first.dtype is None or first.dtype.kind not in "ub" or first.dtype.itemsize > 2:
        raise InputError(f"{path}: pixels of type {first.dtype}: convert the image to 8 or 16 bits per sample")
    known = {PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.PALETTE}
    decoded_to_rgb = first.photometric == PHOTOMETRIC.YCBCR and first.compression in TIFF.IMAGE_COMPRESSIONS
    if first.photometric not in known and not decoded_to_rgb:
        name = getattr(first.photometric, "name", first.photometric)
        raise InputError(f"{path}: colours stored as {name}: convert the image to RGB")
    if samples not in {1, 3} and not (samples in {2, 4} and len(first.extrasamples) == 1):
        raise InputError(f"{path}: {samples} samples per pixel: convert the image to RGB or grey")
    return [_Plane(path, page, cache, max_pixels) for page in pages]


def _rgb(block: np.ndarray, page: TiffPage) -> np.ndarray:
    """Raw samples (height, width, samples) to uint8 RGB."""
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        return to_uint8(np.moveaxis(page.colormap[:, block[..., 0]], 0, 2), 65_535)
    bits = 1 if block.dtype.kind == "b" else int(page.bitspersample)
    block = to_uint8(block, 2**bits - 1)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        block = 255 - block
    rgb = block[..., :3] if block.shape[2] >= 3 else np.repeat(block[..., :1], 3, axis=2)
    # kind 0 is "unspecified": not known to be opacity, so it is left out
    if block.shape[2] in {2, 4} and page.extrasamples[0] in {1, 2}:
        rgba = np.concatenate([rgb, block[..., -1:]], axis=2)
        return flatten_alpha(rgba, premultiplied=page.extrasamples[0] == 1)
    return rgb


def _damaged(path: Path, error: Exception, where: str = "") -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    place = f" at {where}" if where else ""
    return InputError(f"{path}: the image is damaged or can't be decoded{place} ({reason}): copy or convert it again")
