"""Embeddings and targets of one slide, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.nodes import read_elem
from spared_fm.study.cohort import cohort_record, gene_names, require_layer
from spared_fm.study.search_columns import matrix_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spared_fm.store.layout import Layout


def features(
    layout: Layout, slide: str, key: str, rows: Sequence[int] | None = None
) -> tuple[dict[str, Any], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Read embeddings of a slide, chunk by chunk where all are asked for.

    Parameters
    ----------
    layout
        The store.
    slide, key
        Which embeddings.
    rows
        Rows of the slide; by default all.

    Returns
    -------
    attributes : dict
        Of the array: recipe, recipe_id, embedding_id, and dim and dtype.
    blocks : iterator
        Rows (m,) and vectors (m, dim) in the stored dtype; rows without a readable patch are NaN.

    Raises
    ------
    InputError
        No such embeddings, unfinished ones, or of another image or other spots than the slide has now.
    """
    array = EmbeddingArray(layout, slide, key)
    array.check_current()
    note = {**array.attributes, "dim": array.shape[1], "dtype": array.dtype}
    if rows is not None:
        wanted = np.asarray(rows, np.int64)
        return note, iter([(wanted, array.read(wanted))])
    blocks = array.blocks()
    first = next(blocks, None)  # refuses unfinished ones now, not in the middle of an answer

    def every() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if first is not None:
            yield np.asarray(first[0]), first[1]
        yield from ((np.asarray(block), values) for block, values in blocks)

    return note, every()


def targets(layout: Layout, cohort: str, layer: str, slide: str, genes: Sequence[str] = ()) -> dict[str, Any]:
    """Read a layer of a cohort at the spots of one slide, with what was measured and how sure a completion is.

    Parameters
    ----------
    layout
        The store.
    cohort, layer
        Which layer.
    slide
        A slide of the cohort.
    genes
        Genes of its panel, or symbols that the cohort knows; by default all.

    Returns
    -------
    dict
        spots (barcodes), split (of each), genes, value (float32 (spots, genes)), mask (bool, True where measured), uncertainty
        (float32, or None where the layer states none).

    Raises
    ------
    InputError
        No such cohort, layer or gene.
    """
    record, node = cohort_record(layout, cohort), layout.cohort(cohort)
    require_layer(record, cohort, layer)
    named = gene_names(layout, cohort)
    panel = list(named.values())
    at = {name: i for i, pair in enumerate(named.items()) for name in pair}
    if lost := [gene for gene in genes if gene not in at]:
        raise InputError(f"no gene {lost[0]!r} in the panel of cohort {cohort!r}")
    columns = np.array([at[gene] for gene in genes] if genes else range(len(panel)), np.intp)
    obs = read_elem(layout, f"{node}/obs")
    rows = np.flatnonzero((obs["slide"].astype(str) == slide).to_numpy())

    def read(name: str, dtype: type) -> np.ndarray:
        return matrix_rows(layout, f"{node}/layers/{name}", rows)[:, columns].astype(dtype)

    spread = record["layers"][layer].get("spread")
    return {
        "spots": obs["barcode"].astype(str).to_numpy()[rows].tolist(),
        "split": obs["split"].astype(str).to_numpy()[rows].tolist(),
        "genes": [panel[i] for i in columns.tolist()],
        "value": read(layer, np.float32),
        "mask": read("mask", bool) if "mask" in record["layers"] else read("counts", np.float32) > 0,
        "uncertainty": read(spread, np.float32) if spread in record["layers"] else None,
    }
