"""The picture of a slide as tiles of a deep zoom, read from the image as it lies there."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.extract.source import check_unchanged, patch_source
from spared_fm.slides.images import image_size, open_image, thumbnail
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.store.embeddings import slide_record
from spared_fm.study.view import frame, thumbnail_pixels, thumbnail_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spared_fm.slides.images import ImageReader
    from spared_fm.store.layout import Layout
    from spared_fm.study.view import Frame

TILE = 256
OVERLAP = 1
OVERVIEW_PX = 2048
_SHRINK = 8  # a tile that would read more than so many times its own side comes from an overview
_SAME = 1e-6
_decoding = threading.Lock()  # an overview, or a whole JPEG, is a lot of memory at a time


@dataclasses.dataclass
class SlideView:
    """A slide's picture.

    Attributes
    ----------
    slide
        Slide id.
    frame
        Size, µm per pixel, and where the spots lie.
    small
        The store's own thumbnail, uint8 (h, w, 3), from which coarse levels are made without opening the image; or None.
    reader
        Opens the image, or gives it where it is open; None where the thumbnail is all there is.
    """

    slide: str
    frame: Frame
    small: np.ndarray | None
    reader: Callable[[], ImageReader] | None
    _whole: np.ndarray | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def max_level(self) -> int:
        """The level of full size; each one below is half as large."""
        return max(0, math.ceil(math.log2(max(self.frame.width, self.frame.height))))

    @property
    def min_level(self) -> int:
        """The coarsest level that fills a tile."""
        return min(self.max_level, math.ceil(math.log2(TILE)))

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level in pixels."""
        if not 0 <= level <= self.max_level:
            raise InputError(f"slide {self.slide} has no level {level} (levels 0 to {self.max_level})")
        shrink = 2 ** (self.max_level - level)
        return math.ceil(self.frame.width / shrink), math.ceil(self.frame.height / shrink)

    def tile(self, level: int, column: int, row: int, size: int = TILE, overlap: int = OVERLAP) -> np.ndarray:
        """Read a tile of Deep Zoom's pyramid.

        Parameters
        ----------
        level, column, row
            Which one; level ``max_level`` is of full size.
        size
            Side of a tile, pixels.
        overlap
            Pixels of its neighbours at each inner side.

        Returns
        -------
        numpy.ndarray
            uint8 (h, w, 3).

        Raises
        ------
        InputError
            There is no such tile, or the image is gone or damaged.
        """
        width, height = self.size(level)
        if not (0 <= column * size < width and 0 <= row * size < height):
            raise InputError(f"slide {self.slide}, level {level}: no tile {column}_{row}")
        left, top = max(0, column * size - overlap), max(0, row * size - overlap)
        right, bottom = min(width, (column + 1) * size + overlap), min(height, (row + 1) * size + overlap)
        shrink = 2 ** (self.max_level - level)
        box = (
            left * shrink,
            top * shrink,
            min(right * shrink, self.frame.width),
            min(bottom * shrink, self.frame.height),
        )
        return self._read(box, (right - left, bottom - top), shrink)

    def shrunk(self, px: int) -> np.ndarray:
        """Give the whole picture, its longer side at most `px`: uint8 (h, w, 3)."""
        ratio = min(1.0, px / max(self.frame.width, self.frame.height))
        out = max(1, round(self.frame.width * ratio)), max(1, round(self.frame.height * ratio))
        return self._read((0, 0, self.frame.width, self.frame.height), out, 1 / ratio)

    def _read(self, box: tuple[int, int, int, int], out: tuple[int, int], shrink: float) -> np.ndarray:
        """Read a box of the picture at a size, from the smallest source that is no coarser."""
        wanted = self.frame.width / shrink * (1 - _SAME)
        small = self.small
        if small is not None and (self.reader is None or small.shape[1] >= wanted):
            return _resized(lambda x, y, w, h: small[y : y + h, x : x + w], small.shape[1::-1], self.frame, box, out)
        if self.reader is None:
            raise InputError(f"slide {self.slide} has no picture")
        image = self.reader()
        fine = [i for i, level in enumerate(image.levels) if level.downsample <= shrink * (1 + _SAME)]
        level = max(fine, key=lambda i: image.levels[i].downsample, default=0)
        source = image.levels[level]
        longest = max(self.frame.width, self.frame.height)
        if shrink / source.downsample > _SHRINK and longest / shrink <= OVERVIEW_PX:
            overview = self._overview(image)
            return _resized(
                lambda x, y, w, h: overview[y : y + h, x : x + w], overview.shape[1::-1], self.frame, box, out
            )
        return _resized(functools.partial(image.read, level), (source.width, source.height), self.frame, box, out)

    def _overview(self, image: ImageReader) -> np.ndarray:
        """Give the whole image at a few million pixels, for an image that has no small levels of its own."""
        with _decoding:  # the image is open already: to open one in here would wait for this very lock
            if self._whole is None:
                self._whole = thumbnail(image, OVERVIEW_PX)[0]
            return self._whole


def open_slide_image(layout: Layout, slide: str, reader: Callable[[], ImageReader] | None = None) -> SlideView:
    """Open the picture of a slide; the image itself is opened when a tile needs it.

    Parameters
    ----------
    layout
        The store.
    slide
        Slide id.
    reader
        Gives the slide's open image, for callers that keep some open; by default it is opened once for this view.

    Raises
    ------
    InputError
        No such slide, or it has no picture.
    """
    shown = frame(layout, slide)
    if shown.source is None:
        raise InputError(f"slide {slide} has no picture")
    if shown.source == "thumbnail":
        return SlideView(slide, shown, thumbnail_pixels(layout, slide), None)
    opened = reader or functools.cache(functools.partial(open_reader, layout, slide))
    small = thumbnail_pixels(layout, slide) if thumbnail_size(layout, slide) is not None else None
    if small is not None and abs(small.shape[1] / small.shape[0] * shown.height / shown.width - 1) > 2 / min(
        small.shape[:2]
    ):
        small = None  # it shows another field of view
    return SlideView(slide, shown, small, opened)


def open_reader(layout: Layout, slide: str) -> ImageReader:
    """Open a slide's image; refused where the file is no longer the one that was ingested."""
    with _decoding:
        check_unchanged(layout, slide)
        return open_image(slide_record(layout, slide)["image"]["path"])


def reader_bytes(image: ImageReader) -> int:
    """Memory that an open image may take."""
    from spared_fm.slides.raster import RasterImage
    from spared_fm.slides.tiles import DEFAULT_CACHE_BYTES

    if isinstance(image, RasterImage):
        return 3 * image.levels[0].width * image.levels[0].height
    return DEFAULT_CACHE_BYTES


def patch(view: SlideView, x: float, y: float, um: float, px: int) -> np.ndarray:
    """Cut a square around a place of the picture (pixels from its top left corner): uint8 (px, px, 3).

    Raises
    ------
    InputError
        The picture has no scale, the place is outside of it, or the image is damaged there.
    """
    mpp = view.frame.mpp
    if mpp is None:
        raise InputError(f"slide {view.slide}: its µm per pixel are not known, so no patch can be cut")
    if not (0 <= x <= view.frame.width and 0 <= y <= view.frame.height):
        raise InputError(f"slide {view.slide}: ({x:g}, {y:g}) is outside of its picture")
    if view.reader is not None:
        return PatchReader(view.reader(), mpp, PatchSpec(um, px)).read_one(x - 0.5, y - 0.5)
    assert view.small is not None
    half = um / mpp / 2
    region = Image.fromarray(view.small).transform(
        (px, px),
        Image.Transform.EXTENT,
        (x - half, y - half, x + half, y + half),
        Image.Resampling.BICUBIC,
        fillcolor="white",
    )
    return np.asarray(region)


def stored_patch(layout: Layout, slide: str, row: int, um: float, px: int) -> np.ndarray:
    """Read the patch of a spot of a slide that has a file of patches: uint8 (px, px, 3)."""
    if slide_record(layout, slide)["mpp"] is None:
        raise InputError(f"slide {slide}: its µm per pixel are not known, so no patch can be cut")
    reader, places = patch_source(layout, slide, PatchSpec(um, px), range(row, row + 1))
    return reader.read(places)[0]


def _resized(
    read: Callable[[int, int, int, int], np.ndarray],
    size: tuple[int, int],
    shown: Frame,
    box: tuple[int, int, int, int],
    out: tuple[int, int],
) -> np.ndarray:
    """Read a box of the picture, given in its pixels, from a source of another size, as `out` pixels."""
    across, down = size[0] / shown.width, size[1] / shown.height
    left, top, right, bottom = box[0] * across, box[1] * down, box[2] * across, box[3] * down
    x, y = math.floor(left), math.floor(top)
    width = min(size[0], math.ceil(right - _SAME)) - x
    height = min(size[1], math.ceil(bottom - _SAME)) - y
    pixels = read(x, y, width, height)
    if (width, height) == out:
        return pixels
    inner = (left - x, top - y, min(width, right - x), min(height, bottom - y))
    return np.asarray(Image.fromarray(pixels).resize(out, Image.Resampling.BILINEAR, box=inner, reducing_gap=2.0))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG or JPEG, from its header alone; raises :class:`InputError` for what is neither."""
    return image_size(path)
