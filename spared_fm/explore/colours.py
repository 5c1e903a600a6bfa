"""What spots are coloured by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from spared_fm.errors import InputError
from spared_fm.explore.answers import Json, Refused, arrow, numbers, vectors, wants_arrow
from spared_fm.explore.desk import Desk, answered, desk
from spared_fm.explore.pictures import AsFormat
from spared_fm.study import view_colours as study

if TYPE_CHECKING:
    from spared_fm.study.view_colours import Colours

router = APIRouter(prefix="/api", tags=["slides"])
_TAILS = (2.0, 98.0)


@router.get("/slides/{slide}/values")
def values(
    request: Request,
    slide: str,
    what: Annotated[str, Query(max_length=500, description="obs:COLUMN, gene:SYMBOL, pca:KEY or cluster:KEY.")],
    layer: Annotated[
        str | None, Query(max_length=500, description="Of a gene: counts, cohort:C/L or head:C/RUN.")
    ] = None,
    minus: Annotated[str | None, Query(max_length=500, description="A layer to subtract.")] = None,
    k: Annotated[int, Query(ge=2, le=20, description="Clusters.")] = 8,
    as_format: AsFormat = None,
) -> Response:
    """Give a value of every spot of a slide, in the order of its spots, to colour them by."""
    at = desk(request)
    at.slide(slide)
    kind, colon, name = what.partition(":")
    if not colon or not name:
        raise Refused(422, f"what={what!r} is not obs:COLUMN, gene:SYMBOL, pca:KEY or cluster:KEY")
    if kind == "gene":
        layer = layer or "counts"
    elif layer or minus:
        raise Refused(422, "layer and minus go with gene:")
    found = at.values.get((slide, what, layer, minus, k), lambda: _colours(at, slide, kind, name, layer, minus, k))
    head = {"slide": slide, "what": what, "layer": layer, "minus": minus}
    return _arrow(at, head, found) if wants_arrow(request, as_format) else Json(head | _json(found))


@router.get("/genes")
def genes(
    request: Request,
    slide: str,
    layer: Annotated[str, Query(max_length=500)] = "counts",
    prefix: Annotated[str, Query(max_length=100)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List the genes of a layer that begin with a prefix, without regard to case."""
    at = desk(request)
    at.layer(slide, layer)
    found = [name for name in _genes(at, slide, layer) if name.lower().startswith(prefix.lower())]
    return Json(
        {"genes": sorted(found, key=lambda name: (len(name) > len(prefix), name.lower()))[:limit], "total": len(found)}
    )


def _genes(at: Desk, slide: str, layer: str) -> dict[str, str]:
    """Give the genes of a layer: as people name them → as they are stored."""
    return at.lists.get(("genes", slide, layer), lambda: study.layer_genes(at.layout, slide, layer))


def _colours(at: Desk, slide: str, kind: str, name: str, layer: str | None, minus: str | None, k: int) -> Colours:
    if kind == "obs":
        try:
            return study.obs_colours(at.tables().obs(slide), name)
        except InputError as error:
            raise Refused(404, str(error)) from error
    if kind == "gene":
        own = _layer(at, slide, layer or "counts")
        values = _gene(at, slide, name, own["layer"])
        if minus is None:
            return study.gene_colours(values, name, own, None, None)
        other = _layer(at, slide, minus)
        return study.gene_colours(values, name, own, other, _gene(at, slide, name, minus))
    if kind in ("pca", "cluster"):
        key = at.key(name, slide)
        with answered():
            directions = at.fits.get(("pca", key), lambda: study.fit_directions(at.layout, at.held(), key))
            if kind == "pca":
                return study.pca_colours(at.layout, slide, key, directions)
            centres = at.fits.get(("cluster", key, k), lambda: study.fit_clusters(directions, k))
            return study.cluster_colours(at.layout, slide, key, directions, centres)
    raise Refused(422, f"{kind}: is not obs, gene, pca or cluster")


def _gene(at: Desk, slide: str, gene: str, layer: str) -> np.ndarray:
    known = _genes(at, slide, layer)
    stored = list(known.values())
    gene = known.get(gene, gene)
    if gene not in stored:
        raise Refused(404, f"no gene {gene!r} in {layer} of slide {slide}; /api/genes lists them")
    with answered():
        if layer == "counts":
            counts = at.matrices.get(("counts", slide), lambda: study.counts_columns(at.layout, slide))
            return counts[:, [stored.index(gene)]].toarray()[:, 0].astype(np.float64)
        if layer.startswith("head:"):
            predicted, names = at.matrices.get((layer, slide), lambda: study.predicted(at.layout, slide, layer))
            return predicted[:, names.index(gene)].astype(np.float64)
        return study.cohort_values(at.tables(), slide, gene, layer)


def _layer(at: Desk, slide: str, layer: str) -> dict[str, Any]:
    """Describe a layer; the unit of a prediction is in the head's card, which is read only here."""
    found = at.layer(slide, layer)
    return found | {"unit": study.head_unit(at.layout, layer)} if layer.startswith("head:") else found


def _json(found: Colours) -> dict[str, Any]:
    out: dict[str, Any] = {
        "kind": found.kind,
        "label": found.label,
        "unit": found.unit,
        "diverging": found.diverging,
        "categories": None if found.categories is None else list(found.categories),
        **dict.fromkeys(("min", "max", "low", "high")),
    }
    if found.kind == "category":
        return out | {"values": [None if code < 0 else code for code in found.values.tolist()]}
    if found.kind == "rgb":
        good = np.isfinite(found.values).all(axis=1)
        whole = np.rint(np.where(good[:, None], found.values, 0)).astype(int).tolist()
        return out | {"values": [colour if there else None for colour, there in zip(whole, good.tolist(), strict=True)]}
    there = found.values[np.isfinite(found.values)]
    if len(there):
        low, high = np.percentile(there, _TAILS).tolist()
        out |= {"min": float(there.min()), "max": float(there.max()), "low": low, "high": high}
    return out | {"values": numbers(found.values)}


def _arrow(at: Desk, head: dict[str, str | None], found: Colours) -> Response:
    import pyarrow as pa

    if found.kind == "category":
        codes = pa.array(found.values, mask=found.values < 0)
        column = pa.DictionaryArray.from_arrays(codes, pa.array(found.categories or (), pa.utf8()))
    elif found.kind == "rgb":
        absent = ~np.isfinite(found.values).all(axis=1)
        column = vectors(np.rint(np.where(absent[:, None], 0, found.values)).astype(np.uint8), absent)
    else:
        column = pa.array(numbers(found.values), pa.float64())
    spots = pa.array(at.spots(str(head["slide"]))["ids"], pa.utf8())
    return arrow(
        {"spot": spots, "value": column}, head | {"kind": found.kind, "label": found.label, "unit": found.unit}
    )
