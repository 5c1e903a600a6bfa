"""Where a slide's pixels come from: its image, read around coordinates, or a file of patches, read by row."""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING, Protocol

import numpy as np

from spared_fm.errors import InputError
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.store.embeddings import slide_record
from spared_fm.store.nodes import read_index, read_rows

if TYPE_CHECKING:
    from spared_fm.slides.images import ImageReader
    from spared_fm.slides.patchfiles import PatchFile
    from spared_fm.store.layout import Layout

_lock = threading.Lock()


class Reader(Protocol):
    """Reads patches at places: coordinates (n, 2) on an image, or rows (n,) of the slide for a file of patches."""

    spec: PatchSpec

    def read(self, places: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Read patches: uint8 (n, px, px, 3). An UnreadablePatchError tells the first bad one by its `index`."""
        ...


def patch_source(layout: Layout, slide: str, spec: PatchSpec, rows: range | None = None) -> tuple[Reader, np.ndarray]:
    """Open a slide's pixels for some of its spots.

    Parameters
    ----------
    layout
        The store.
    slide
        Slide id.
    spec
        The patches.
    rows
        Consecutive rows of the slide, by default all: a task reads the coordinates of its own chunk, not of the whole slide.

    Returns
    -------
    reader : Reader
        Shared by the threads of the process.
    places : numpy.ndarray
        What `reader.read` takes, one per row of `rows`, in this order.

    Raises
    ------
    InputError
        The image or the patches are gone, another file, or damaged.
    """
    record = slide_record(layout, slide)
    image, node = record["image"], layout.slide(slide)
    mpp, scale = record["mpp"], image["scale"]
    if image["kind"] != "patches":
        with _lock:
            opened = _image(image["path"], record["fingerprint"], _version(image["path"]))
        return PatchReader(opened, mpp, spec, scale=scale), read_rows(layout, f"{node}/obsm/spatial", rows)
    from spared_fm.slides.patchfiles import StoredPatchReader

    barcodes = read_index(layout, f"{node}/obs", rows)
    with _lock:
        patches = _patches(image["path"], record["fingerprint"], slide, _version(image["path"]))
    return StoredPatchReader(patches, list(barcodes), mpp / scale, spec), np.arange(len(barcodes))


def check_unchanged(layout: Layout, slide: str) -> None:
    """Raise :class:`InputError` when the slide's image is not the one that was ingested."""
    record = slide_record(layout, slide)
    _check(record["image"]["path"], record["fingerprint"])


def check_extent(slide: str, record: dict, spec: PatchSpec) -> None:
    """Refuse patches wider than those a file of patches holds; an image has no such limit.

    Parameters
    ----------
    slide
        Slide id, for the message.
    record
        The slide's record.
    spec
        The patches asked for.
    """
    image = record["image"]
    if image["kind"] != "patches":
        return
    stored_um = image["width"] * record["mpp"] / image["scale"]
    if spec.um > stored_um * (1 + 1e-6):
        raise InputError(
            f"slide {slide}: its stored patches are {stored_um:.4g} µm wide, {spec.um:g} µm are asked for: pass "
            f"--patch-um {stored_um:.4g} or less, or ingest the image they were cut from"
        )


@functools.lru_cache(maxsize=2)  # an untiled image is held decoded; chunks of one slide follow each other
def _image(path: str, expected: str, _: tuple[int, ...]) -> ImageReader:
    _check(path, expected)
    return open_image(path)


@functools.lru_cache(maxsize=2)
def _patches(path: str, expected: str, slide: str, _: tuple[int, ...]) -> PatchFile:
    from spared_fm.slides.patchfiles import open_patches

    _check(path, expected)
    return open_patches(path, slide)


def _version(path: str) -> tuple[int, ...]:
    """Tell a file from the one that lay there before: what is open, or decoded, must not outlive its replacement."""
    try:
        state = os.stat(path)
    except OSError:
        return ()  # opening it says what is wrong
    return state.st_ino, state.st_mtime_ns, state.st_size


def _check(path: str, expected: str) -> None:
    if fingerprint(path) != expected:  # the path is only a hint; the fingerprint says whether it is our image
        raise InputError(f"{path} is no longer the image that was ingested; put that one back")
