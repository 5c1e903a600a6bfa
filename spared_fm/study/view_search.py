"""Search kept open: for a server, whose many small questions must not open the store each time."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.study.index_table import encoded_slides
from spared_fm.study.queries import Maker, Query, Region
from spared_fm.study.search import engine, excluded
from spared_fm.study.search_columns import Tables, expression, masks, native, obs_values
from spared_fm.study.search_engine import Exact, best, best_per_slide
from spared_fm.study.view import Frame, coordinates, frame
from spared_fm.study.view_cache import Cache
from spared_fm.study.view_resident import MOST_BYTES, Resident

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from spared_fm.store.layout import Layout
    from spared_fm.study.index_table import Kept

MOST_REGION_UM = 2000.0
"""Longest side of a region that is encoded from pixels."""
MOST_ANY = 1000
"""Most spots of a region that are searched for one by one: each has as many results as all of them together."""
_OWN = frozenset({"query", "rank", "spot", "x", "y", "similarity", "expression"})  # what a result says of itself
_KEPT = 32  # conditions whose fitting rows are remembered
_encoding = threading.Lock()  # an encoder uses all cores by itself


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of a slide, in µm from the picture's top left corner."""

    slide: str
    x: float
    y: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a search is asked, beside its query; see :func:`spared_fm.study.search.find`."""

    k: int = 10
    radius: float | None = None
    combine: str | None = None
    exclude: str | None = None
    slides: tuple[str, ...] | None = None
    where: Mapping[str, Sequence[str]] | None = None
    cohort: str | None = None
    one_per_slide: bool = False
    columns: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()
    layer: str | None = None


class Searcher:
    """The embeddings of one key, open to be searched by many threads.

    With an index it is the index that answers. Without one all rows are held in memory where they fit, else looked at on disk.

    Parameters
    ----------
    layout
        The store.
    key
        Array key.

    Raises
    ------
    InputError
        Embeddings that are unfinished or not of their slides, or an index that is not of what the store holds.
    """

    def __init__(self, layout: Layout, key: str) -> None:
        self.layout = layout
        self.slides, self.key = encoded_slides(layout, None, key)
        self.tables = Tables(layout)
        self.rows, self.engine = engine(layout, self.key, self.slides, None, None, exact=False)
        if isinstance(self.engine, Exact) and self.engine.metric == Resident.metric:
            whole = self.rows.kept(dict.fromkeys(self.slides))
            if Resident.needs(self.rows, whole) <= MOST_BYTES:
                self.engine = Resident(self.rows, whole)
        first = self.rows.array(self.rows.numbers[self.slides[0]])
        self._maker = Maker(self.tables, first, self.engine.metric, None, self.rows.scaled)
        self._frames: dict[str, tuple[Frame, np.ndarray | None]] = {}
        self._kept: Cache[Kept] = Cache(_KEPT)

    def spot_queries(self, spots: Sequence[str], combine: str | None) -> list[Query]:
        """One query per spot ``SLIDE/BARCODE``, or with `combine` one of all."""
        made = []
        for name in spots:
            slide, row = self.tables.row(name)
            if slide not in self.rows.numbers:
                raise InputError(f"slide {slide} has no embeddings {self.key!r}")
            vector = self.rows.array(self.rows.numbers[slide]).read(np.array([row])).astype(np.float32)
            if not np.isfinite(vector).all():
                raise InputError(f"spot {name} has no embedding: its patch could not be read")
            made.append(Query(name, self.rows.scaled(vector), (slide,), ((slide, row),)))
        return made if combine is None or len(made) < 2 else [self._one(made, combine)]

    def region_query(self, box: Box, combine: str | None) -> tuple[Query, str]:
        """Make a query of the encoded spots in a rectangle, or where there are none, of its pixels; and tell which.

        Raises
        ------
        InputError
            The slide's scale is unknown, or the rectangle has no spots and no pixels, or too many.
        """
        shown, xy = self._frame(box.slide)
        if shown.mpp is None:
            raise InputError(
                f"slide {box.slide}: its µm per pixel are not known, so no region can be cut; query with spots"
            )
        left, top, right, bottom = (v / shown.mpp for v in (box.x, box.y, box.x + box.width, box.y + box.height))
        if xy is not None and box.slide in self.rows.numbers:
            inside = (xy[:, 0] >= left) & (xy[:, 0] <= right) & (xy[:, 1] >= top) & (xy[:, 1] <= bottom)
            rows = np.flatnonzero(inside)
            values = self.rows.array(self.rows.numbers[box.slide]).read(rows).astype(np.float32)
            good = np.isfinite(values).all(axis=1)
            made = [
                Query(box.slide, vector[None], (box.slide,), ((box.slide, int(row)),))
                for row, vector in zip(rows[good], self.rows.scaled(values[good]), strict=True)
            ]
            if combine == "any" and len(made) > MOST_ANY:
                raise InputError(
                    f"the region has {len(made)} spots, at most {MOST_ANY} are searched for one by one; draw a smaller one, or "
                    "ask for their mean"
                )
            if made:
                return dataclasses.replace(
                    self._one(made, combine or "mean"), name=f"{len(made)} spots of a region"
                ), "region spots"
        side = max(box.width, box.height)
        if side > MOST_REGION_UM:
            raise InputError(
                f"the region has no encoded spot and is {side:g} µm wide; draw one of {MOST_REGION_UM:g} µm at most"
            )
        x, y = shown.coordinates((left + right) / 2, (top + bottom) / 2)
        record = self.tables.record(box.slide)
        side = max(side, self._maker.array.recipe.patch_um)
        region = Region(box.slide, x * record["mpp"], y * record["mpp"], "um", side)
        with _encoding:
            return self._maker.regions([region], combine)[0], "region pixels"

    def image_query(self, path: Path, mpp: float | None, name: str) -> Query:
        """Make a query of an image file, see :meth:`spared_fm.study.queries.Maker.images`."""
        with _encoding:
            return dataclasses.replace(self._maker.images([path], mpp)[0], name=name)

    def vector_query(self, vector: Sequence[float]) -> Query:
        """Make a query of a vector."""
        return self._maker.vectors([np.asarray(vector, np.float64)])[0]

    def answer(self, queries: Sequence[Query], ask: Ask) -> list[dict[str, Any]]:
        """Find the rows most similar to queries.

        Returns
        -------
        list of dict
            As those of :func:`spared_fm.study.search.search`, but x and y are pixels of the slide's picture, and genes are in
            ``expression``: gene → value. A column named like one of these is ``obs:<column>``.
        """
        hits = self._hits(queries, ask)
        places = [(i, rank, *at) for i, found in enumerate(hits) for rank, at in enumerate(found, start=1)]
        spots = [(slide, row) for _, _, slide, row, _ in places]
        beside = obs_values(self.tables, spots, ask.columns, self.slides)
        expressed: list[list[float]] | None = None
        if ask.genes:
            layer = ask.layer or "counts"
            cohort, _, name = layer.removeprefix("cohort:").partition("/") if layer != "counts" else (None, "", None)
            expressed = expression(self.tables, spots, ask.genes, name, cohort).tolist()
        results = []
        for at, (query, rank, slide, row, similarity) in enumerate(places):
            _, xy = self._frame(slide)
            x, y = (None, None) if xy is None else (native(value) for value in xy[row].tolist())
            result = {
                "query": queries[query].name,
                "rank": rank,
                "spot": f"{slide}/{self.tables.barcodes(slide)[row]}",
                "slide": slide,
                "patient": self.tables.record(slide)["patient"],
                "x": x,
                "y": y,
                "similarity": similarity,
                **{f"obs:{name}" if name in _OWN else name: value for name, value in beside[at].items()},
            }
            if expressed is not None:
                result["expression"] = dict(zip(ask.genes, map(native, expressed[at]), strict=True))
            results.append(result)
        return results

    def _hits(self, queries: Sequence[Query], ask: Ask) -> list[list[tuple[str, int, float]]]:
        kept = self._keep(ask)
        if not len(kept):
            raise InputError("no spot fits the slides, the cohort and the conditions asked for")
        groups: dict[frozenset[int], list[int]] = {}
        for position, query in enumerate(queries):
            left_out = frozenset(self.rows.numbers[s] for s in excluded(self.tables, query, self.slides, ask.exclude))
            groups.setdefault(left_out, []).append(position)
        out: list[list[tuple[str, int, float]]] = [[] for _ in queries]
        find = best_per_slide if ask.one_per_slide else best
        for left_out, positions in groups.items():
            remaining = kept.without(left_out) if left_out else kept
            asked = [queries[position] for position in positions]
            found = find(self.engine, self.rows, asked, remaining, ask.k, ask.radius)
            for position, hits in zip(positions, found, strict=True):
                named = self.rows.where(np.array([i for i, _ in hits], dtype=np.int64))
                out[position] = [(slide, row, value) for (slide, row), (_, value) in zip(named, hits, strict=True)]
        return out

    def _keep(self, ask: Ask) -> Kept:
        slides = self.slides if ask.slides is None else [s for s in self.slides if s in set(ask.slides)]
        where = {name: list(values) for name, values in (ask.where or {}).items()}
        key = (tuple(slides), ask.cohort, tuple((name, tuple(values)) for name, values in sorted(where.items())))
        return self._kept.get(key, lambda: self.rows.kept(masks(self.tables, slides, where, ask.cohort)))

    def _one(self, made: Sequence[Query], combine: str) -> Query:
        return Query(
            f"{combine} of {len(made)} spots",
            self._maker.combined(np.concatenate([query.vectors for query in made]), combine),
            tuple(dict.fromkeys(query.slides[0] for query in made)),
            tuple(query.own[0] for query in made),
        )

    def _frame(self, slide: str) -> tuple[Frame, np.ndarray | None]:
        """Give a slide's frame, and its spots in it."""
        if slide not in self._frames:
            shown, xy = frame(self.layout, slide, self.tables.record(slide)), coordinates(self.layout, slide)
            self._frames[slide] = shown, None if xy is None else shown.place(xy)
        return self._frames[slide]
