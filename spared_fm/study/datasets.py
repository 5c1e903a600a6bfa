"""The data sets of SpaRED: the registry as a table, and a file of one against the figures that were published of it."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.datasets import SPLITS, Dataset, dataset, same_slides
from spared_fm.targets.datasets import datasets as registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd
    from anndata import AnnData

BLOCK_ROWS = 4096


def datasets(pattern: str = "*") -> list[dict[str, Any]]:
    """List the data sets of SpaRED.

    Parameters
    ----------
    pattern
        Glob of names or abbreviations; case does not matter.

    Returns
    -------
    list of dict
        name, abbreviation, organism, tissue, slides (how many), train, val, test (lists of slides), scored_on (``val`` where
        there is no test split), patients, spots, genes, missing, missing_raw, incomplete_spots (percent), combat_key,
        cell_min_counts, counts (``raw`` or ``normalised``), image_bits, same_slides (data set → slides it shares), sources,
        note.

    Raises
    ------
    InputError
        Nothing fits.
    """
    wanted = pattern.lower()
    found = [
        _table_row(one)
        for one in registry().values()
        if any(fnmatch.fnmatchcase(name.lower(), wanted) for name in (one.name, one.abbreviation))
    ]
    if not found:
        raise InputError(
            f"none of the {len(registry())} data sets fits {pattern!r}; `spared-fm datasets` lists them all"
        )
    return found


def _table_row(one: Dataset) -> dict[str, Any]:
    kept = (
        "patients", "spots", "genes", "missing", "missing_raw", "incomplete_spots", "combat_key", "cell_min_counts", "counts",
        "image_bits",
    )  # fmt: skip
    return {
        **{name: getattr(one, name) for name in ("name", "abbreviation", "organism", "tissue")},
        "slides": len(one.slides),
        **{split: list(getattr(one, split)) for split in SPLITS},
        "scored_on": one.scored_on,
        **{name: getattr(one, name) for name in kept},
        "same_slides": {other: list(slides) for other, slides in same_slides(one.name).items()},
        "sources": list(one.sources),
        "note": one.note,
    }


def check(data: AnnData | str | Path, name: str) -> list[dict[str, Any]]:
    """Compare SpaRED data with the published table.

    Parameters
    ----------
    data
        SpaRED's ``adata.h5ad`` (which has layer ``mask``) or ``adata_raw.h5ad``, as a path or opened. Of a file only ``obs``,
        the gene names and the mask (raw: the counts, in blocks) are read, never the patches.
    name
        Name or abbreviation of the data set.

    Returns
    -------
    list of dict
        field, expected, found, ok. Percentages agree where they round to the one in print. A raw file has more spots than
        the table, and its genes are not compared.

    Raises
    ------
    InputError
        No such data set, or not a file of SpaRED's.
    """
    one = dataset(name)
    found = _read(Path(data)) if isinstance(data, str | Path) else _look(data)
    return [
        *_slides(one, found),
        _row("patients", one.patients, int(found.obs["patient"].nunique()) if "patient" in found.obs else None),
        _row("organism", one.organism, _organism(found.genes)),
        *_figures(one, found),
    ]


class _Found(NamedTuple):
    """What is compared of a file."""

    obs: pd.DataFrame
    genes: list[str]
    processed: bool  # else raw
    missing: float  # percent of entries
    incomplete: float  # percent of spots


def _row(field: str, expected: Any, found: Any, ok: bool | None = None) -> dict[str, Any]:
    return {"field": field, "expected": expected, "found": found, "ok": expected == found if ok is None else ok}


def _slides(one: Dataset, found: _Found) -> list[dict[str, Any]]:
    of_split = found.obs.groupby(found.obs["split"].astype(str))["slide_id"].unique()
    rows = []
    for split in SPLITS:
        expected = list(getattr(one, split))
        there = sorted(of_split[split].astype(str)) if split in of_split else []
        rows.append(_row(f"{split} slides", expected, there, sorted(expected) == there))
    return rows


def _figures(one: Dataset, found: _Found) -> list[dict[str, Any]]:
    spots, missing = len(found.obs), round(found.missing, 2)
    if not found.processed:
        return [
            _row("spots", f"at least {one.spots}", spots, spots >= one.spots),
            _row("missing raw %", one.missing_raw, missing, round(missing) == one.missing_raw),
        ]
    incomplete = round(found.incomplete, 2)
    return [
        _row("spots", one.spots, spots),
        _row("genes", one.genes, len(found.genes)),
        _row("missing %", one.missing, missing, round(missing) == one.missing),
        _row("incomplete spots %", one.incomplete_spots, incomplete, round(incomplete) == one.incomplete_spots),
    ]


def _organism(genes: list[str]) -> str:
    """Organism that the Ensembl ids are of, ``unknown`` for other names."""
    from spared_fm.targets.genes import ENSEMBL_PREFIX

    told = {organism for organism, prefix in ENSEMBL_PREFIX.items() if all(gene.startswith(prefix) for gene in genes)}
    return told.pop() if len(told) == 1 else "unknown"


def _look(adata: AnnData) -> _Found:
    processed = "mask" in adata.layers
    return _found(adata.obs, adata.var_names, processed, adata.layers["mask"] if processed else adata.X, "the data")


def _read(path: Path) -> _Found:
    """Read what is compared and leave the rest on disk: the patches alone are some 150 kB per spot."""
    import anndata as ad
    import h5py

    from spared_fm.slides.slide import READ_ERRORS, first_line  # with anndata: a listing needs neither

    try:
        with h5py.File(path, "r") as file:
            obs, var = (ad.io.read_elem(file[key]) for key in ("obs", "var"))
            processed = "mask" in file.get("layers", ())
            node = file["layers/mask"] if processed else file["X"]
            values = node if isinstance(node, h5py.Dataset) else ad.io.sparse_dataset(node)
            return _found(obs, var.index, processed, values, str(path))
    except InputError:  # a ValueError too, and says what is wrong already
        raise
    except READ_ERRORS as error:
        raise InputError(f"{path}: not a readable .h5ad ({first_line(error)}): copy it again") from error


def _found(obs: pd.DataFrame, genes: Iterable[object], processed: bool, values: Any, where: str) -> _Found:
    if lacks := [column for column in ("slide_id", "split") if column not in obs]:
        raise InputError(
            f"{where}: obs has no {lacks[0]!r}, so it is no file of SpaRED's: give its adata.h5ad or adata_raw.h5ad"
        )
    if values is None or 0 in values.shape:
        raise InputError(f"{where}: holds no entries; give SpaRED's adata.h5ad or adata_raw.h5ad")
    rows, columns = values.shape
    present = np.concatenate(list(_present(values)))
    return _Found(
        obs=obs,
        genes=[str(gene) for gene in genes],
        processed=processed,
        missing=100 * (1 - present.sum() / (rows * columns)),
        incomplete=100 * float((present < columns).mean()),
    )


def _present(values: Any) -> Iterator[np.ndarray]:
    """Entries that are not zero, per row."""
    for start in range(0, values.shape[0], BLOCK_ROWS):
        block = values[start : start + BLOCK_ROWS]
        yield (block != 0).sum(axis=1).A1 if sp.issparse(block) else np.count_nonzero(np.asarray(block), axis=1)
