"""Gene names as Ensembl ids without version, and gene lengths. Cohorts join genes by these ids."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_EXAMPLES = 5
_KNOWN_SYMBOLS = 0.5
"""Share of a slide's names that must be symbols of an organism for it to be taken for that organism's."""


@dataclass(frozen=True)
class Naming:
    """What the genes of a cohort's slides are called in the cohort.

    Attributes
    ----------
    organism
        ``human`` or ``mouse``; None where the names tell of neither (or of both alike): all names are as given then.
    ids
        Slide → ``(n_genes,)`` object array, not writable: the cohort's id of each of its genes, ``""`` for a dropped one.
        Not dropped ids are unique within a slide.
    symbols
        Id → symbol, of the mapped ids that have one: the annotation's, else the first slide's.
    given
        Name as a slide has it → id.
    report
        ``mapped``: ids of `organism`; ``without_length``: those of them without a known length; ``as_given``: ids that
        are none, among them ``ambiguous`` symbols; ``shared``: ids that all slides have. Rows dropped, summed over the slides:
        ``dropped_duplicate`` (another row of the slide is the same gene), ``dropped_nameless``. Beside it, as lists,
        ``as_given_examples`` and ``dropped_examples``.
    """

    organism: str | None
    ids: dict[str, np.ndarray]
    symbols: dict[str, str]
    given: dict[str, str]
    report: dict[str, int | list[str]]

    def find(self, listed: Sequence[str]) -> list[str]:
        """Cohort ids of a list of names (a panel, for example), each id once; a name nobody knows stays as it is."""
        mapped = _cohort_names(listed, self.organism)["id"]
        return list(dict.fromkeys(self.given.get(name, id_) for name, id_ in zip(listed, mapped, strict=True)))


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
    var = _as_var(names)
    given = pd.Series(var.index, dtype=object)
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


def identify(names: Mapping[str, Names], organism: str | None = None) -> Naming:
    """Give the genes of several slides one name each.

    A gene is called by its Ensembl id without version where :func:`map_genes` finds one of `organism`, else by its name as
    given (less the version, if it is an Ensembl id of another species). Two genes of one slide that would be called the
    same: the one of the most trusted source stays, of these the first.

    Parameters
    ----------
    names
        Slide → gene names in order, or ``var``, whose ``gene_ids`` column is looked at too.
    organism
        ``human`` or ``mouse``. Default: what most of a slide's Ensembl ids say; without any, the organism that at least
        half of the slide's names are symbols of.

    Returns
    -------
    Naming

    Raises
    ------
    InputError
        A slide without genes; another organism; slides of two organisms; `organism` given, and a slide has none of its
        genes.
    """
    variables = {slide: _as_var(given) for slide, given in names.items()}
    keys = {slide: tuple(var.index) + tuple(var.get(ENSEMBL_COLUMN, ())) for slide, var in variables.items()}
    distinct: dict[tuple[str, ...], str] = {}  # most slides of a study have one and the same list of genes
    for slide, key in keys.items():
        if not len(variables[slide]):
            raise InputError(f"slide {slide} has no genes: leave it out")
        distinct.setdefault(key, slide)
    told, organism = organism is not None, organism or _one_organism({s: variables[s] for s in distinct.values()})
    tables = {}
    for key, slide in distinct.items():
        tables[key] = _cohort_names(variables[slide], organism)
        if organism and told and not tables[key]["mapped"].any():
            raise InputError(f"slide {slide}: {_nothing_mapped(map_genes(variables[slide], organism), organism)}")
    every = pd.concat([_cohort_names([], organism), *tables.values()], ignore_index=True)
    first = every.drop_duplicates("name")
    symbols = every[every["mapped"] & (every["symbol"] != "")].drop_duplicates("id")
    ids = {key: table["id"].where(table["stays"], "").to_numpy(object) for key, table in tables.items()}
    for known in ids.values():
        known.setflags(write=False)  # slides share them
    return Naming(
        organism,
        {slide: ids[key] for slide, key in keys.items()},
        dict(zip(symbols["id"], symbols["symbol"], strict=True)),
        dict(zip(first["name"], first["id"], strict=True)),
        _naming_report({slide: tables[key] for slide, key in keys.items()}, every, len(tables), organism),
    )


def _naming_report(
    slides: Mapping[str, pd.DataFrame], every: pd.DataFrame, n_lists: int, organism: str | None
) -> dict[str, int | list[str]]:
    """Report of :class:`Naming`; ``every`` holds each of the ``n_lists`` different lists of genes once."""
    mapped = pd.Index(every.loc[every["mapped"], "id"].unique())
    as_given = every[~every["mapped"] & (every["id"] != "")].drop_duplicates("id")
    kept = every.loc[every["stays"], "id"].value_counts()
    lost = {slide: table[~table["stays"]] for slide, table in slides.items() if not table["stays"].all()}
    nameless = sum(int((table["id"] == "").sum()) for table in lost.values())
    rows = [
        f"{s}: {row.name} ({row.id})" for s, table in lost.items() for row in table.itertuples(index=False) if row.id
    ]
    return {
        "mapped": len(mapped),
        "without_length": int((~mapped.isin(_annotation(organism).index)).sum()) if organism else 0,
        "as_given": len(as_given),
        "ambiguous": int(as_given["ambiguous"].sum()),
        "shared": int((kept == n_lists).sum()),
        "dropped_duplicate": len(rows),
        "dropped_nameless": nameless,
        "as_given_examples": as_given["id"].head(_EXAMPLES).tolist(),
        "dropped_examples": rows[:_EXAMPLES],
    }


def _cohort_names(names: Names, organism: str | None) -> pd.DataFrame:
    """``name``, ``id``, whether it is ``mapped``, ``stays`` (no better row has the id), is ``ambiguous``, ``symbol``."""
    var = _as_var(names)
    given = pd.Series(var.index, dtype=object)
    stripped = given.str.extract(f"^{_ENSEMBL.pattern}$")[0].fillna(given)
    table = pd.DataFrame({"name": given, "id": stripped, "mapped": False, "ambiguous": False, "symbol": ""})
    trust = pd.Series(len(SOURCES), table.index)
    if organism:
        found = map_genes(var, organism)
        annotated = found["gene_id"].map(_annotation(organism)["symbol"]).fillna("")
        table["mapped"] = found["gene_id"] != ""
        table["id"] = found["gene_id"].where(table["mapped"], stripped)
        table["ambiguous"] = found["fate"] == "ambiguous"
        table["symbol"] = annotated.where(annotated != "", found["symbol"])
        trust = found["source"].map({source: rank for rank, source in enumerate(SOURCES)}).fillna(len(SOURCES))
    best_first = table["id"].loc[trust.sort_values(kind="stable").index]
    table["stays"] = ~best_first.duplicated().reindex(table.index) & (table["id"] != "")
    return table


def _one_organism(slides: Mapping[str, pd.DataFrame]) -> str | None:
    found: dict[str, str] = {}
    for slide, var in slides.items():
        if guess := _guess_organism(var):
            found.setdefault(guess, slide)
    if len(found) > 1:
        which = " and ".join(f"{organism} (slide {slide})" for organism, slide in sorted(found.items()))
        raise InputError(f"the slides have genes of {which}: make a cohort of each organism")
    return next(iter(found), None)


def _guess_organism(var: pd.DataFrame) -> str | None:
    names = [pd.Series(var.index, dtype=object)]
    if ENSEMBL_COLUMN in var:
        names.append(var[ENSEMBL_COLUMN].astype(str))
    ids = {o: sum(int((_ensembl_ids(n, o)[0] != "").sum()) for n in names) for o in ENSEMBL_PREFIX}
    if any(ids.values()):
        return max(ids, key=ids.__getitem__)
    known = {o: float(names[0].isin(_annotation(o)["symbol"]).mean()) for o in ENSEMBL_PREFIX}
    best = max(known, key=known.__getitem__)
    return best if known[best] >= _KNOWN_SYMBOLS else None


def _as_var(names: Names) -> pd.DataFrame:
    """``var`` with names as plain strings."""
    if isinstance(names, pd.DataFrame):
        columns = [ENSEMBL_COLUMN] if ENSEMBL_COLUMN in names else []
        return names[columns].set_axis(pd.Index(names.index.astype(str), dtype=object), axis=0)
    return pd.DataFrame(index=pd.Index([str(name) for name in names], dtype=object))


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
