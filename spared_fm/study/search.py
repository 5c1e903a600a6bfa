"""Search: the most similar patches of the store, for spots, images, regions of slides or vectors."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.study.index_table import Rows, Scale, encoded_slides, standardized
from spared_fm.study.queries import COMBINE, Maker, Query
from spared_fm.study.search_columns import (
    Spot,
    Tables,
    cohort_mates,
    conditions,
    expression,
    masks,
    native,
    obs_values,
    picked_rows,
)
from spared_fm.study.search_engine import METRICS, Exact, best, best_per_slide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from spared_fm.store.layout import Layout
    from spared_fm.study.queries import Region
    from spared_fm.study.search_engine import Engine, Hits, Metric

EXCLUDE = ("slide", "patient", "cohort")
COLUMNS = ("query", "rank", "spot", "slide", "patient", "x", "y", "similarity")
"""What every result has; obs columns and expression follow."""
DEFAULT_K = 10
EXACT_ROWS = 100_000
"""Above this many rows a search without an index says how to make one."""


@dataclasses.dataclass
class Found:
    """What a search found: for each query its hits, each with slide, row and similarity, best first."""

    rows: Rows
    tables: Tables
    queries: list[Query]
    hits: list[list[tuple[str, int, float]]]
    metric: Metric

    @property
    def spots(self) -> list[Spot]:
        """Slide and row of every hit, query after query."""
        return [(slide, row) for found in self.hits for slide, row, _ in found]


def search(
    layout: Layout,
    encoder: str,
    *,
    columns: Sequence[str] = (),
    genes: Sequence[str] = (),
    layer: str | None = None,
    cohort: str | None = None,
    montage: str | Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Find the patches most similar to spots of the store, to image files, to regions of slides or to vectors.

    Parameters
    ----------
    layout
        The store.
    encoder
        Encoder name or array key.
    columns
        Columns to give beside each result: of ``obs``, ``split``, or a label of its slide (``tissue``).
    genes
        Genes whose expression to give beside each result, as ``<layer>:<gene>``.
    layer
        Layer they are read from: with `cohort` any of its layers, measured or completed (``lognorm``, ``d_log1p`` …), without
        one ``counts``, which is the default.
    cohort
        Find spots of this cohort only.
    montage
        PNG file to write: queries and results as images.
    **options
        Queries and what may be found, see :func:`find`.

    Returns
    -------
    list of dict
        One row per result, best first: query, rank (from 1), spot (``SLIDE/BARCODE``), slide, patient, x, y (pixels), similarity
        (cosine; inner product; minus the squared distance), then `columns` and expression.

    Raises
    ------
    InputError
        What :func:`find` refuses; an unknown column, gene or layer; an image that can't be written.
    """
    if layer is not None and not genes:
        raise InputError("--layer says where the expression of --gene is read; name a gene")
    if set(columns) & set(COLUMNS):
        raise InputError(
            f"--column {min(set(columns) & set(COLUMNS))!r} is given with every result anyway; leave it out"
        )
    found = find(layout, encoder, cohort=cohort, **options)
    spots, tables = found.spots, found.tables
    beside = obs_values(tables, spots, columns, list(found.rows.numbers))
    if genes:
        values = expression(tables, spots, genes, layer, cohort)
        for row, measured in zip(beside, values.tolist(), strict=True):
            row |= {f"{layer or 'counts'}:{gene}": native(value) for gene, value in zip(genes, measured, strict=True)}
    results = described(found, beside)
    if montage is not None:
        from spared_fm.study.montage import montage as draw

        draw(found, montage)
    return results


def find(
    layout: Layout,
    encoder: str,
    *,
    spots: Sequence[str] = (),
    images: Sequence[str | Path] = (),
    regions: Sequence[str | Region] = (),
    vectors: Sequence[str | Path | np.ndarray] = (),
    combine: str | None = None,
    k: int | None = None,
    radius: float | None = None,
    exclude: str | None = None,
    slides: str | Sequence[str] | None = None,
    where: Mapping[str, Any] | Sequence[str] | None = None,
    cohort: str | None = None,
    known: Sequence[str] = (),
    one_per_slide: bool = False,
    metric: Metric | None = None,
    standardize: bool | None = None,
    exact: bool = False,
    weights: str | Path | None = None,
    mpp: float | None = None,
) -> Found:
    """Find the nearest rows of each query; see :func:`search` for what is made of them.

    Where the store has an index of the embeddings it is used, and refused when it is not of what the store holds now. Without one
    every row is looked at.

    Parameters
    ----------
    layout
        The store.
    encoder
        Encoder name or array key.
    spots
        Query spots, ``SLIDE/BARCODE``. They are never among the results of their own query.
    images
        Query image files. Each is one patch: with `mpp` its centre is read at the recipe's scale, without it the whole
        (centre square) image is taken to be one patch.
    regions
        Query regions of the store's slides, see :meth:`spared_fm.study.queries.Region.parse`: ``SLIDE:X,Y``, in pixels, or
        ``SLIDE:X,Yum``, in µm; ``SLIDE:X,Y,500um`` is a square of that side, tiled with patches.
    vectors
        Query vectors: arrays, or ``.npy`` files.
    combine
        ``mean`` or ``any``: the query spots are one query, their mean or what is similar to any of them. By default each is a
        query of its own. Also how the patches of a large region are combined (by default their mean).
    k
        Results per query, by default 10; with `radius` at most so many, by default all.
    radius
        All that is at least so similar (``cosine``, ``ip``), or at most so far (``l2``).
    exclude
        ``slide``, ``patient`` or ``cohort``: leave out results of the query's own slide, of its patient, or of slides that are in
        a cohort with it.
    slides
        Glob or ids of the slides to search; by default all that have the embeddings.
    where
        Conditions on spots, ``column=value`` or column → value or values: of ``obs``, ``slide``, ``patient``, ``split``, or a
        label of the slide (``tissue``). Values are globs; those of one column are alternatives, several columns must all fit.
    cohort
        Find spots of this cohort only.
    known
        Columns that must have a value.
    one_per_slide
        Give the best result of each slide only.
    metric
        ``cosine``, ``ip`` or ``l2``; by default the index's, else cosine.
    standardize
        Compare embeddings less the mean of each dimension, over its standard deviation (over the slides that are searched), so
        that dimensions of other size count the same; by default the index's, else True for the built-in encoders (their
        dimensions are statistics in units of their own) and False for networks.
    exact
        Look at every row although there is an index.
    weights
        Weights file of the encoder, to encode images and regions, when the array was made with one.
    mpp
        Microns per pixel of the query images.

    Raises
    ------
    InputError
        No query, an unknown spot, slide, cohort or column, an unreadable image or one smaller than a patch, vectors of another
        length, embeddings that are missing or unfinished, ``exclude`` with a query of no slide, an index that is damaged or not
        of what the store holds.
    """
    if not (len(spots) or len(images) or len(regions) or len(vectors)):
        raise InputError(
            "nothing to search for; give --spot SLIDE/BARCODE, --image FILE, --region SLIDE:X,Y or --vector FILE.npy"
        )
    _check_options(combine, k, radius, exclude, metric)
    if exclude and (len(images) or len(vectors)):
        raise InputError("--exclude needs a query spot or region: an image file or a vector has no slide or patient")
    chosen, key = encoded_slides(layout, slides, encoder)
    tables = Tables(layout)
    wanted = conditions(where)
    rows, finder = engine(layout, key, chosen, metric, standardize, exact)
    maker = Maker(tables, rows.array(rows.numbers[chosen[0]]), finder.metric, weights, rows.scaled)
    queries = [
        *maker.spots(spots, combine),
        *maker.images(images, mpp),
        *maker.regions(regions, combine),
        *maker.vectors(vectors),
    ]
    fits = masks(tables, chosen, wanted, cohort, known)
    kept = rows.kept(fits)
    if not len(kept):
        raise InputError(f"{layout.root}: no spot of the {len(chosen)} slides searched fits --where and --cohort")
    if isinstance(finder, Exact) and not exact and len(kept) > EXACT_ROWS:
        warnings.warn(
            f"{len(kept)} rows are compared one by one; `spared-fm index --store {layout.root} --encoder {key}` makes an index",
            stacklevel=4,  # who called the study
        )
    groups: dict[frozenset[int], list[int]] = {}
    for position, query in enumerate(queries):
        left_out = frozenset(rows.numbers[slide] for slide in excluded(tables, query, chosen, exclude))
        groups.setdefault(left_out, []).append(position)
    hits: list[Hits] = [[] for _ in queries]
    if k is None and radius is None:
        k = DEFAULT_K
    for left_out, positions in groups.items():
        asked = [queries[position] for position in positions]
        ask = best_per_slide if one_per_slide else best
        found = ask(finder, rows, asked, kept.without(left_out), k, radius)
        for position, own in zip(positions, found, strict=True):
            hits[position] = own
    named = []
    for own in hits:
        places = rows.where(np.array([i for i, _ in own], dtype=np.int64))
        named.append([(slide, row, value) for (slide, row), (_, value) in zip(places, own, strict=True)])
    return Found(rows, tables, queries, named, finder.metric)


def described(found: Found, beside: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give every hit as a row with :data:`COLUMNS`, and what stands beside it."""
    layout = found.tables.layout
    places: dict[Spot, tuple[str, Sequence[float | None]]] = {}
    for slide in dict.fromkeys(slide for slide, _ in found.spots):
        node = layout.slide(slide)
        mine = np.unique([row for where, row in found.spots if where == slide])
        xy: Any = [(None, None)] * len(mine)
        if layout.files.exists(f"{node}/obsm/spatial/zarr.json"):
            xy = picked_rows(layout, f"{node}/obsm/spatial", mine).tolist()
        for row, barcode, centre in zip(mine.tolist(), found.tables.names(slide, mine), xy, strict=True):
            places[slide, row] = barcode, centre
    rows: list[dict[str, Any]] = []
    more = iter(beside)
    for query, hits in zip(found.queries, found.hits, strict=True):
        for rank, (slide, row, similarity) in enumerate(hits, start=1):
            barcode, (x, y) = places[slide, row]
            rows.append(
                {
                    "query": query.name,
                    "rank": rank,
                    "spot": f"{slide}/{barcode}",
                    "slide": slide,
                    "patient": found.tables.record(slide)["patient"],
                    "x": native(x),
                    "y": native(y),
                    "similarity": similarity,
                    **next(more),
                }
            )
    return rows


def _check_options(
    combine: str | None, k: int | None, radius: float | None, exclude: str | None, metric: str | None
) -> None:
    if k is not None and k < 1:
        raise InputError(f"k is {k}: ask for 1 or more")
    if radius is not None and not np.isfinite(radius):
        raise InputError(f"--radius {radius} is not a finite number")
    for option, value, allowed in (
        ("combine", combine, COMBINE),
        ("exclude", exclude, EXCLUDE),
        ("metric", metric, METRICS),
    ):
        if value not in (None, *allowed):
            raise InputError(f"--{option} {value!r} is not {', '.join(allowed[:-1])} or {allowed[-1]}")


def engine(
    layout: Layout, key: str, slides: Sequence[str], metric: Metric | None, standardize: bool | None, exact: bool
) -> tuple[Rows, Engine]:
    """Choose what finds the rows: the index of the embeddings where there is one, else a look at every row.

    Parameters
    ----------
    layout
        The store.
    key
        Array key.
    slides
        Those that are searched.
    metric, standardize, exact
        See :func:`find`.

    Raises
    ------
    InputError
        The index is damaged, not of what the store holds, or for another metric or standardisation.
    """
    from spared_fm.study.index_open import open_index, read_card

    card = None if exact else read_card(layout, key)
    if card is None or card["plan"]["kind"] == "exact":
        settings = card or {"metric": "cosine", "standardize": standardized(key)}
        rows = Rows(layout, key, {slide: number for number, slide in enumerate(slides)})
        if settings["standardize"] if standardize is None else standardize:
            rows.scale = Scale.measure(rows.blocks(rows.kept(dict.fromkeys(slides))))
        return rows, Exact(rows, metric or settings["metric"])
    for option, asked in (("metric", metric), ("standardize", standardize)):
        if asked not in (None, card[option]):
            raise InputError(
                f"the index of {key!r} is for {option} {card[option]}, not {asked}; use --exact, or make it again with "
                f"`spared-fm index --store {layout.root} --encoder {key}` and that option"
            )
    index = open_index(layout, card, slides)
    return index.rows, index


def excluded(tables: Tables, query: Query, slides: Sequence[str], exclude: str | None) -> set[str]:
    """Give the slides among those searched that a query leaves out.

    Raises
    ------
    InputError
        The patient of a query's slide is not known, or it is in no cohort.
    """
    if exclude is None:
        return set()
    out = set(query.slides)
    if exclude == "patient":
        patients = {slide: tables.record(slide)["patient"] for slide in query.slides}
        if lost := [slide for slide, patient in patients.items() if patient is None]:
            raise InputError(
                f"--exclude patient: the patient of slide {lost[0]} is not known; ingest it again with --patient"
            )
        out |= {slide for slide in slides if tables.record(slide)["patient"] in patients.values()}
    if exclude == "cohort":
        for slide in query.slides:
            mates = cohort_mates(tables.layout, slide)
            if not mates:
                raise InputError(f"--exclude cohort: slide {slide} is in no cohort; use --exclude slide or patient")
            out |= mates
    return out & set(slides)
