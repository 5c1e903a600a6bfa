"""Gene names as Ensembl ids without version, and gene lengths. Cohorts join genes by these ids."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

DATA = Path(__file__).with_name("data")

ENSEMBL_PREFIX = {"human": "ENSG", "mouse": "ENSMUSG"}
ENSEMBL_COLUMN = "gene_ids"
"""Column of ``var`` with the Ensembl ids of genes named by symbol: the 10x readers' and SpaRED's word."""

SYMBOL_COLUMN = "gene_symbol"

SOURCES = ("ensembl", ENSEMBL_COLUMN, "symbol")
"""Where an id can come from, most trusted first: the name itself, the column beside it, or the name as a symbol."""

Names: TypeAlias = pd.DataFrame | pd.Index | Sequence[str]

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")


def gene_lengths(organism: str) -> pd.Series:
    """Length of each gene's union of exons.

    Parameters
    ----------
    organism
        ``human`` (GENCODE v43, basic annotation) or ``mouse`` (vM33).

    Returns
    -------
    pandas.Series
        ``length_bp`` in base pairs, int64, by Ensembl id without version, sorted by id.

    Raises
    ------
    InputError
        Another organism.
    """
    return _annotation(organism)["length_bp"].copy()


def map_genes(names: Names, organism: str) -> pd.DataFrame:
    """Find the Ensembl id of every gene.

    An id is taken from the name itself (its version and ``_PAR_Y`` cut off), else from ``gene_ids`` beside it, else from the
    symbol in the annotation that :func:`gene_lengths` comes from. Symbols match in full and with their case; withdrawn
    ones and aliases are not known to it.

    Parameters
    ----------
    names
        ``adata.var``, or gene names alone.
    organism
        ``human`` or ``mouse``.

    Returns
    -------
    pandas.DataFrame
        One row per gene, in order, with ``name`` (as given), ``gene_id`` (empty where there is none), ``source`` (one of
        :data:`SOURCES`, or empty), ``symbol`` (the name where it is one, else the annotation's, or empty), ``fate``:

        - ``kept``;
        - ``unmapped``: neither an Ensembl id nor a known symbol;
        - ``other organism``: an Ensembl id, of another species;
        - ``ambiguous``: a symbol of several genes, none of which is more likely than the others;
        - ``duplicate``: another row has this id. Kept is the row of the most trusted source, of these the first.

    Raises
    ------
    InputError
        Another organism.
    """
    annotation = _annotation(organism)
    var = names if isinstance(names, pd.DataFrame) else pd.DataFrame(index=pd.Index(names, dtype=object))
    given = pd.Series(var.index.astype(str), dtype=object)
    beside = pd.Series("", given.index, dtype=object)
    if ENSEMBL_COLUMN in var:
        beside = var[ENSEMBL_COLUMN].astype(str).reset_index(drop=True)

    by_symbol, several = _symbols(organism)
    ids, foreign = _ensembl_ids(given, organism)
    ids_beside, foreign_beside = _ensembl_ids(beside, organism)
    candidates = (ids, ids_beside, given.map(by_symbol).fillna(""))

    table = pd.DataFrame({"name": given, "gene_id": "", "source": ""})
    for source, found in zip(SOURCES, candidates, strict=True):
        new = (table["gene_id"] == "") & (found != "")
        table.loc[new, "gene_id"], table.loc[new, "source"] = found[new], source
    # a name that is an id shows nothing: look its symbol up
    known = table["gene_id"].map(annotation["symbol"]).fillna("")
    table["symbol"] = np.where((ids != "") | foreign, known, given)

    mapped = table["gene_id"] != ""
    table["fate"] = np.select(
        [mapped, foreign | foreign_beside, given.isin(several)], ["kept", "other organism", "ambiguous"], "unmapped"
    )
    trust = table["source"].map({source: rank for rank, source in enumerate(SOURCES)})
    ordered = table[mapped].loc[trust[mapped].sort_values(kind="stable").index]
    table.loc[ordered.index[ordered["gene_id"].duplicated()], "fate"] = "duplicate"
    return table


def harmonise(adata: AnnData, organism: str) -> tuple[AnnData, dict[str, Any]]:
    """Name the genes by Ensembl id without version and drop those that can't be.

    Parameters
    ----------
    adata
        Spots × genes, named by symbol or Ensembl id; not changed.
    organism
        ``human`` or ``mouse``.

    Returns
    -------
    AnnData
        A copy with the genes that :func:`map_genes` keeps, in their order, and ``var['gene_symbol']`` where there was none.
    dict
        :func:`gene_report`.

    Raises
    ------
    InputError
        Another organism, or no gene at all can be mapped.
    """
    table = map_genes(adata.var, organism)
    kept = table[table["fate"] == "kept"]
    if kept.empty:
        raise InputError(_nothing_mapped(table, organism))
    out = adata[:, kept.index.to_numpy()].copy()
    out.var_names = pd.Index(kept["gene_id"].to_numpy(object))
    if SYMBOL_COLUMN not in out.var:
        out.var[SYMBOL_COLUMN] = kept["symbol"].to_numpy(object)
    return out, gene_report(table, organism)


def gene_report(table: pd.DataFrame, organism: str) -> dict[str, Any]:
    """Say what became of the genes of :func:`map_genes`.

    Returns
    -------
    dict
        ``genes``, ``kept`` and ``without_length`` (of those kept; they get no TPM) as counts, ``sources`` (count by source,
        of those kept); the names of the ``unmapped``, ``other_organism``, ``ambiguous`` and ``duplicate`` ones as lists.
    """
    kept = table[table["fate"] == "kept"]
    dropped = {
        fate.replace(" ", "_"): table.loc[table["fate"] == fate, "name"].tolist()
        for fate in ("unmapped", "other organism", "ambiguous", "duplicate")
    }
    return {
        "genes": len(table),
        "kept": len(kept),
        "without_length": int((~kept["gene_id"].isin(_annotation(organism).index)).sum()),
        "sources": {source: int((kept["source"] == source).sum()) for source in SOURCES},
        **dropped,
    }


def _ensembl_ids(names: pd.Series, organism: str) -> tuple[pd.Series, pd.Series]:
    """Ids without version, empty where a name is none of `organism`'s; and which are ids of another species."""
    ids = names.str.extract(f"^{_ENSEMBL.pattern}$")[0].fillna("")
    own = ids.str.match(rf"{ENSEMBL_PREFIX[organism]}\d")
    return ids.where(own, ""), (ids != "") & ~own


def _nothing_mapped(table: pd.DataFrame, organism: str) -> str:
    if table.empty:
        return "there are no genes to map"
    example = table["name"].iloc[0]
    if (table["fate"] == "other organism").any():
        return f"the genes (for example {example}) are not {organism} genes: give the right organism"
    return (
        f"none of the {len(table)} genes (for example {example}) is a {organism} Ensembl id or symbol:"
        " check the organism and that var_names are genes"
    )


@functools.cache
def _symbols(organism: str) -> tuple[pd.Series, frozenset[str]]:
    """Ids by symbol where it is one gene's, and the symbols of several."""
    annotation = _annotation(organism).reset_index()
    by_symbol = annotation.drop_duplicates("symbol", keep=False).set_index("symbol")["gene_id"]
    return by_symbol, frozenset(annotation["symbol"]) - frozenset(by_symbol.index)


@functools.cache
def _annotation(organism: str) -> pd.DataFrame:
    """``symbol`` and ``length_bp`` by ``gene_id``."""
    if organism not in ENSEMBL_PREFIX:
        raise InputError(f"no gene annotation of organism {organism!r}: give {' or '.join(ENSEMBL_PREFIX)}")
    path = DATA / f"gene_lengths_{organism}.csv.gz"
    table = pd.read_csv(path, keep_default_na=False, dtype={"length_bp": np.int64}).set_index("gene_id").sort_index()
    # the copy on Y of a pseudoautosomal gene has the id, symbol and length of the one on X
    return table[~table.index.str.endswith("_PAR_Y")]
