"""One open store for all requests: what it holds, looked up by id, and what was read of it last."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from spared_fm.errors import InputError
from spared_fm.explore.answers import Refused, jpeg
from spared_fm.study import view
from spared_fm.study.api import Study
from spared_fm.study.view_cache import Cache
from spared_fm.study.view_image import open_reader, open_slide_image, reader_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from fastapi import Request

    from spared_fm.slides.images import ImageReader
    from spared_fm.study.search_columns import Tables
    from spared_fm.study.view import Catalogue
    from spared_fm.study.view_colours import Colours
    from spared_fm.study.view_image import SlideView
    from spared_fm.study.view_search import Searcher

T = TypeVar("T")
LOOK_EVERY_S = 2.0
"""Seconds after which the store is looked at again for what has changed."""
LOOK_SHARE = 20  # a look takes at most one part in so many of the time
IMAGES = 1 << 30
TILES, VALUES, MATRICES = 128 << 20, 128 << 20, 1 << 30
VIEWS, SEARCHERS, FITS = 64, 3, 8


class Desk:
    """A store that is being looked at.

    Parameters
    ----------
    store
        Its folder or URL.
    max_upload, max_pixels
        Most bytes, and most pixels, of an image that is sent here.
    """

    def __init__(self, store: str | Path, *, max_upload: int, max_pixels: float) -> None:
        self.layout = Study(store).layout
        self.max_upload, self.max_pixels = max_upload, int(max_pixels)
        self.name = str(store).rstrip("/").rpartition("/")[2]
        self._images: Cache[ImageReader] = Cache(IMAGES, reader_bytes)
        self._views: Cache[SlideView] = Cache(VIEWS)
        self._tiles: Cache[bytes] = Cache(TILES, len)
        self.values: Cache[Colours] = Cache(VALUES, lambda colours: colours.nbytes)
        self.matrices: Cache[Any] = Cache(MATRICES, _matrix_bytes)
        self.fits: Cache[Any] = Cache(FITS)
        self.lists: Cache[Any] = Cache(256)
        self._searchers: Cache[Searcher] = Cache(SEARCHERS)
        self._look = threading.Lock()
        self._held: Catalogue | None = None
        self._mark = ""
        self._next = 0.0

    # -- what there is -------------------------------------------------------------------------------------------------

    def held(self) -> Catalogue:
        """Tell what the store holds; when that has changed, what was read before is forgotten."""
        held = self._held
        if held is not None and (time.monotonic() < self._next or not self._look.acquire(blocking=False)):
            return held
        if held is None:
            self._look.acquire()
        try:
            if self._held is not None and time.monotonic() < self._next:
                return self._held
            start = time.monotonic()
            fresh = view.catalogue(self.layout)
            text = json.dumps(dataclasses.astuple(fresh), sort_keys=True)
            mark = hashlib.sha256(text.encode()).hexdigest()
            if mark != self._mark:
                # lists are made of what is held, so it is new before they are forgotten; a picture is kept by a mark that
                # was taken before it was read, so the mark is new after
                self._held = fresh
                for cache in (
                    self._views,
                    self._tiles,
                    self.values,
                    self.matrices,
                    self.fits,
                    self.lists,
                    self._searchers,
                ):
                    cache.clear()
                self._mark = mark
            now = time.monotonic()
            self._next = now + max(LOOK_EVERY_S, LOOK_SHARE * (now - start))
            assert self._held is not None
            return self._held
        finally:
            self._look.release()

    def slide(self, slide: str, held: Catalogue | None = None) -> dict[str, Any]:
        """Give the record of a slide, of what is held now or was just now."""
        return _find((held or self.held()).slides, slide, "slide")

    def cohort(self, cohort: str) -> dict[str, Any]:
        """Give the record of a cohort."""
        return _find(self.held().cohorts, cohort, "cohort")

    def key(self, encoder: str, slide: str | None = None) -> str:
        """Give the key of embeddings, of the store or of a slide."""
        held = self.held()
        known = held.encoders() if slide is None else list(_find(held.embeddings, slide, "slide"))
        if encoder not in known:
            raise Refused(404, f"no embeddings {encoder!r} (there are: {', '.join(sorted(known)) or 'none'})")
        return encoder

    def layer(self, slide: str, layer: str) -> dict[str, Any]:
        """Describe a layer that has expression of a slide."""
        self.slide(slide)
        return _find({row["layer"]: row for row in self.layers(slide)}, layer, f"layer of slide {slide}")

    def layers(self, slide: str) -> list[dict[str, Any]]:
        """List the layers that have expression of a slide."""

        def listed() -> list[dict[str, Any]]:
            held = self.held()
            self.slide(slide, held)
            return view.layers(held, slide)

        return self.lists.get(("layers", slide), listed)

    def tables(self) -> Tables:
        """Give the tables of the slides."""
        from spared_fm.study.search_columns import Tables

        return self.lists.get("tables", lambda: Tables(self.layout))

    def spots(self, slide: str) -> dict[str, Any]:
        """Give ids, places and diameter of a slide's spots."""
        self.slide(slide)
        return self.lists.get(("spots", slide), lambda: view.spots(self.layout, slide))

    def rows(self, slide: str, barcodes: Sequence[str]) -> list[int]:
        """Find the rows of spots of a slide."""
        at = self.lists.get(("rows", slide), lambda: {name: i for i, name in enumerate(self.spots(slide)["ids"])})
        return [_find(at, barcode, f"spot of slide {slide}") for barcode in barcodes]

    # -- pictures ------------------------------------------------------------------------------------------------------

    def view(self, slide: str) -> SlideView:
        """Give the picture of a slide; images stay open as long as they fit."""
        record = self.slide(slide)
        reader = functools.partial(
            self._images.get, (slide, record["fingerprint"]), functools.partial(open_reader, self.layout, slide)
        )
        try:
            return self._views.get(slide, lambda: open_slide_image(self.layout, slide, reader))
        except InputError as error:
            raise Refused(404, str(error)) from error

    def picture(self, mark: str, make: Any) -> bytes:
        """Give the JPEG of what `make` reads, kept under a mark that was taken before anything of it was read."""

        def encoded() -> bytes:
            with answered():
                return jpeg(make())

        return self._tiles.get(mark, encoded)

    def mark(self, *key: Any) -> str:
        """Name a picture as it is now, for the browser."""
        self.held()
        return hashlib.sha256(repr((self._mark, key)).encode()).hexdigest()[:16]

    # -- search --------------------------------------------------------------------------------------------------------

    def searcher(self, encoder: str) -> Searcher:
        """Give the embeddings of a key, open to be searched."""
        from spared_fm.study.view_search import Searcher

        key = self.key(encoder)
        with answered():
            return self._searchers.get(key, lambda: Searcher(self.layout, key))


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Say that the store can't answer, where it is not the request that is at fault."""
    try:
        yield
    except InputError as error:
        raise Refused(409, str(error)) from error


def desk(request: Request) -> Desk:
    """Give the desk of the application that serves this request."""
    found: Desk = request.app.state.desk
    return found


def _find(known: Mapping[str, T], name: str, what: str) -> T:
    """Look an id up in a list of the store's own."""
    if name not in known:
        some = ", ".join(list(known)[:8]) or "none"
        raise Refused(404, f"no {what} {name!r} (there are: {some}{' …' if len(known) > 8 else ''})")
    return known[name]


def _matrix_bytes(matrix: Any) -> int:
    values, *_ = matrix if isinstance(matrix, tuple) else (matrix,)
    if hasattr(values, "indptr"):
        return int(values.data.nbytes + values.indices.nbytes + values.indptr.nbytes)
    return int(values.nbytes)
