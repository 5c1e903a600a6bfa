"""What a search knows of spots beside their vectors: obs columns, labels of slides, expression."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.nodes import read_elem, read_index
from spared_fm.study.cohort import cohort_record, gene_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spared_fm.store.layout import Layout

OF_SLIDES = ("slide", "patient", "split")
"""Columns that a slide's record answers, whatever ``obs`` says."""
Spot = tuple[str, int]
"""Slide and row."""


class Tables:
    """Tables of the store's slides, each read once.

    Parameters
    ----------
    layout
        The store.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._obs: dict[str, pd.DataFrame] = {}
        self._barcodes: dict[str, pd.Index] = {}
        self._records: dict[str, dict[str, Any]] = {}

    def record(self, slide: str) -> dict[str, Any]:
        """Record of a slide: patient, split, image, mpp and more."""
        if slide not in self._records:
            self._records[slide] = slide_record(self.layout, slide)
        return self._records[slide]

    def obs(self, slide: str) -> pd.DataFrame:
        """``obs`` of a slide, one row per spot; the index is the barcodes."""
        if slide not in self._obs:
            self._obs[slide] = read_elem(self.layout, f"{self.layout.slide(slide)}/obs")
        return self._obs[slide]

    def barcodes(self, slide: str) -> pd.Index:
        """Barcodes of a slide's spots."""
        if slide not in self._barcodes:
            stored = read_index(self.layout, f"{self.layout.slide(slide)}/obs")
            self._barcodes[slide] = pd.Index([str(barcode) for barcode in stored])
        return self._barcodes[slide]

    def names(self, slide: str, rows: np.ndarray) -> list[str]:
        """Barcodes of some rows, ascending, without reading those of the others."""
        if slide in self._barcodes:
            return list(self._barcodes[slide][rows])
        obs = f"{self.layout.slide(slide)}/obs"
        name = zarr.open_group(self.layout.zarr_store(obs), mode="r", zarr_format=3).attrs["_index"]
        return [str(barcode) for barcode in picked_rows(self.layout, f"{obs}/{name}", rows)]

    def row(self, spot: str) -> Spot:
        """Slide and row of a spot named ``SLIDE/BARCODE``; raises :class:`InputError` for an unknown one."""
        slide, _, barcode = spot.partition("/")
        self.record(slide)
        barcodes = self.barcodes(slide)
        if barcode not in barcodes:
            raise InputError(
                f"slide {slide} has no spot {barcode!r}; a spot is named SLIDE/BARCODE, e.g. {slide}/{barcodes[0]}"
            )
        return slide, int(barcodes.get_loc(barcode))

    def column(self, slide: str, name: str) -> pd.Series | None:
        """Give a column of a slide's spots: of its record, of ``obs``, or a label of the whole slide (``tissue``); else None."""
        barcodes = self.barcodes(slide)
        if name in OF_SLIDES:
            return pd.Series([self.record(slide)[name]] * len(barcodes), index=barcodes, dtype=object)
        if name in self.obs(slide):
            return self.obs(slide)[name]
        value = self._labels(slide).get(name)
        return None if value is None else pd.Series([value] * len(barcodes), index=barcodes)

    def columns(self, slides: Iterable[str]) -> list[str]:
        """Names of the columns that the slides have."""
        found: dict[str, None] = dict.fromkeys(OF_SLIDES)
        for slide in slides:
            found |= dict.fromkeys([*self.obs(slide).columns, *self._labels(slide)])
        return list(found)

    def _labels(self, slide: str) -> dict[str, Any]:
        key = f"{self.layout.slide(slide)}/uns/spatial/{slide}/metadata"
        if not self.layout.files.exists(f"{key}/zarr.json"):
            return {}
        return {name: value for name, value in read_elem(self.layout, key).items() if np.ndim(value) == 0}


def conditions(where: Mapping[str, Any] | Sequence[str] | None) -> dict[str, list[str]]:
    """Read ``column=value`` conditions into column → values of which one must fit.

    Raises
    ------
    InputError
        A condition has no ``=``.
    """
    if isinstance(where, str):
        where = [where]
    if where is None or not isinstance(where, dict):
        pairs = []
        for text in where or ():
            name, equals, value = str(text).partition("=")
            if not equals or not name:
                raise InputError(f"--where {text!r} is not COLUMN=VALUE, e.g. --where annotation='Granular*'")
            pairs.append((name, value))
    else:
        pairs = [
            (name, value)
            for name, values in where.items()
            for value in (values if isinstance(values, list | tuple | set) else [values])
        ]
    out: dict[str, list[str]] = {}
    for name, value in pairs:
        out.setdefault(name, []).append(str(value))
    return out


def masks(
    tables: Tables,
    slides: Sequence[str],
    wanted: Mapping[str, list[str]],
    cohort: str | None,
    known: Sequence[str] = (),
) -> dict[str, np.ndarray | None]:
    """Tell which spots of each slide fit.

    Parameters
    ----------
    tables
        Tables of the store.
    slides
        Slides to look at.
    wanted
        From :func:`conditions`; spots must fit every column. Values are globs; numbers are compared as numbers.
    cohort
        Only spots of this cohort.
    known
        Columns that must not be empty.

    Returns
    -------
    dict
        Slide → bool (spots,), or None where all fit. Slides without a fitting spot are left out.

    Raises
    ------
    InputError
        Unknown cohort, or a column that no slide has.
    """
    members = _members(tables.layout, cohort) if cohort is not None else None
    out: dict[str, np.ndarray | None] = {}
    seen: set[str] = set()
    for slide in slides:
        if members is not None and slide not in members:
            continue
        mask: np.ndarray | None = None
        if members is not None:
            mask = tables.barcodes(slide).isin(members[slide])
        for name in (*wanted, *known):
            fits = _fits(tables, slide, name, wanted.get(name))
            if fits is not None:
                seen.add(name)
            mask = _and(mask, np.zeros(1, bool) if fits is None else fits)
        if mask is None or mask.any():
            out[slide] = None if mask is None or mask.all() else mask
    searched = slides if members is None else [s for s in slides if s in members]
    for name in (*wanted, *known):
        if name not in seen and searched:
            raise InputError(
                f"no slide that is searched has a column {name!r} (columns: {', '.join(tables.columns(searched[:8]))})"
            )
    return out


def _fits(tables: Tables, slide: str, name: str, patterns: list[str] | None) -> np.ndarray | None:
    """Bool (spots,), or (1,) for a label of the whole slide; None where the slide has no such column."""
    if name in OF_SLIDES:  # spares reading obs
        value = tables.record(slide)[name]
        return np.array([value is not None and (patterns is None or _fit(value, patterns))])
    column = tables.column(slide, name)
    if column is None:
        return None
    there = column.notna().to_numpy()
    if patterns is None:
        return there & (column.astype(str) != "").to_numpy()
    good = [value for value in column[there].unique() if _fit(value, patterns)]
    return column.isin(good).to_numpy()


def _fit(value: Any, patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        if fnmatch.fnmatchcase(str(value), pattern):
            return True
        try:
            if not isinstance(value, str) and float(value) == float(pattern):
                return True
        except (TypeError, ValueError):
            pass
    return False


def _and(mask: np.ndarray | None, fits: np.ndarray) -> np.ndarray | None:
    if len(fits) == 1 and fits[0]:
        return mask
    return fits if mask is None else mask & fits


def _members(layout: Layout, cohort: str) -> dict[str, pd.Series]:
    cohort_record(layout, cohort)
    obs = read_elem(layout, f"{layout.cohort(cohort)}/obs")
    return {str(slide): part for slide, part in obs["barcode"].groupby(obs["slide"], observed=True)}


def cohort_mates(layout: Layout, slide: str) -> set[str]:
    """Slides that are in a cohort with this one, itself included; empty where it is in none."""
    found: set[str] = set()
    for cohort in layout.cohorts():
        together = set(cohort_record(layout, cohort)["split"])
        if slide in together:
            found |= together
    return found


def native(value: Any) -> Any:
    """Give what JSON can hold: None for missing values."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NA else value


def obs_values(
    tables: Tables, spots: Sequence[Spot], names: Sequence[str], slides: Sequence[str]
) -> list[dict[str, Any]]:
    """Values of columns at spots, one dict per spot; None where a slide has no such column.

    Raises
    ------
    InputError
        None of the searched slides has such a column.
    """
    found: dict[tuple[str, str], pd.Series | None] = {
        (slide, name): tables.column(slide, name) for slide in {slide for slide, _ in spots} for name in names
    }
    for name in names:
        lost = bool(spots) and all(found[slide, name] is None for slide, _ in spots)
        if lost and all(tables.column(slide, name) is None for slide in slides):
            raise InputError(f"no slide has a column {name!r} (columns: {', '.join(tables.columns(slides[:8]))})")
    return [
        {name: None if (column := found[slide, name]) is None else native(column.iloc[row]) for name in names}
        for slide, row in spots
    ]


def expression(
    tables: Tables, spots: Sequence[Spot], genes: Sequence[str], layer: str | None, cohort: str | None
) -> np.ndarray:
    """Read the expression of genes at spots.

    Parameters
    ----------
    tables
        Tables of the store.
    spots
        Slides and rows.
    genes
        Gene names, or symbols that a cohort knows.
    layer
        Layer of the cohort; without a cohort only ``counts``, the raw counts, which is the default.
    cohort
        Cohort name.

    Returns
    -------
    numpy.ndarray
        float64 (spots, genes); NaN where a slide does not measure a gene, or the cohort lacks the spot.

    Raises
    ------
    InputError
        Unknown cohort, layer or gene.
    """
    out = np.full((len(spots), len(genes)), np.nan)
    layout = tables.layout
    if cohort is not None:
        record = cohort_record(layout, cohort)
        if (layer or "counts") not in record["layers"]:
            known = ", ".join(sorted(record["layers"]))
            raise InputError(f"cohort {cohort!r} has no layer {layer or 'counts'!r} (layers: {known})")
        node = layout.cohort(cohort)
        obs = read_elem(layout, f"{node}/obs")
        joined = pd.MultiIndex.from_arrays([obs["slide"].astype(str), obs["barcode"].astype(str)])
        asked = pd.MultiIndex.from_tuples([(s, tables.barcodes(s)[r]) for s, r in spots], names=[None, None])
        rows = joined.get_indexer(asked) if len(spots) else np.empty(0, np.intp)
        symbols = gene_names(layout, cohort)
        genes = [symbols.get(gene, gene) for gene in genes]
        stored = list(symbols.values())
        places = [(np.flatnonzero(rows >= 0), rows[rows >= 0], stored, f"{node}/layers/{layer or 'counts'}")]
    else:
        if layer not in (None, "counts"):
            raise InputError(f"--layer {layer} is a layer of a cohort; name it with --cohort")
        slides = np.array([slide for slide, _ in spots], dtype=object)
        rows = np.array([row for _, row in spots], dtype=np.intp)
        places = [
            (
                np.flatnonzero(slides == s),
                rows[slides == s],
                [str(name) for name in read_index(layout, f"{layout.slide(s)}/var")],
                f"{layout.slide(s)}/X",
            )
            for s in dict.fromkeys(slides.tolist())
            if tables.record(s)["counts_digest"] is not None
        ]
    seen: set[str] = set()
    for mine, picked, stored, matrix in places:
        names = pd.Index(stored)
        there = [i for i, gene in enumerate(genes) if gene in names]
        seen |= {genes[i] for i in there}
        if len(mine) and there:
            values = matrix_rows(layout, matrix, picked)[:, names.get_indexer([genes[i] for i in there])]
            out[np.ix_(mine, np.array(there))] = values
    if spots and (lost := [gene for gene in genes if gene not in seen]):
        where = f"cohort {cohort!r}" if cohort is not None else "the slides found"
        raise InputError(f"no gene {lost[0]!r} in {where}; names are as in var")
    return out


def picked_rows(layout: Layout, key: str, rows: np.ndarray) -> np.ndarray:
    """Read rows, ascending, of a dense array below a node; only the chunks they lie in are fetched."""
    return np.asarray(zarr.open_array(layout.zarr_store(key), mode="r", zarr_format=3).oindex[rows])


def matrix_rows(layout: Layout, key: str, rows: np.ndarray) -> np.ndarray:
    """Rows of a dense or sparse matrix below a node, float64 (n, columns); only these are read."""
    from anndata.io import sparse_dataset

    stored = zarr.open(layout.zarr_store(key), mode="r", zarr_format=3)
    order, back = np.unique(rows, return_inverse=True)
    values = stored.oindex[order] if isinstance(stored, zarr.Array) else sparse_dataset(stored)[order].toarray()
    return np.asarray(values)[back].astype(np.float64)
