"""What a store shows to those who look at it: slides, cohorts, encoders, and where the spots lie in the picture."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.layout import TOKENS
from spared_fm.store.nodes import read_elem, read_index, read_rows
from spared_fm.study.index_open import INDEXES, files, read_card, stale

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from spared_fm.store.layout import Layout

    Record = dict[str, Any]

UNITS = {"counts": "counts", "tpm": "TPM", "lognorm": "ln(1 + counts per 10⁴)", "log1p": "log2(1 + TPM)"}
"""Units of layers by how their names end; ``deltas`` are differences of ``log1p`` from a gene's mean."""
_MARGIN = 0.05  # of the spots' extent, around them where there is no picture


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What a store holds at one time; ids in a request are looked up here and nowhere else.

    Attributes
    ----------
    slides, cohorts
        Id → record.
    embeddings
        Slide → key → its attributes, with ``dim``; without token grids.
    heads
        Cohort → names of fitted heads.
    indexes
        Key → checksums of the files of its index.
    """

    slides: Mapping[str, Record]
    cohorts: Mapping[str, Record]
    embeddings: Mapping[str, Mapping[str, Record]]
    heads: Mapping[str, list[str]]
    indexes: Mapping[str, list[str]]

    def encoders(self) -> list[str]:
        """Keys of embeddings, sorted."""
        return sorted({key for own in self.embeddings.values() for key in own})


@dataclasses.dataclass(frozen=True)
class Frame:
    """The picture of a slide as it is shown, and where the spots' coordinates lie in it.

    Attributes
    ----------
    width, height
        Pixels of the picture at full size.
    scale
        Its pixels per pixel of the spots' coordinates.
    offset
        Added to x and y after that.
    mpp
        µm per pixel of the picture, None where it isn't known.
    source
        ``image``, ``thumbnail``, or None where there is no picture.
    """

    width: int
    height: int
    scale: float
    offset: tuple[float, float]
    mpp: float | None
    source: str | None

    def place(self, xy: np.ndarray) -> np.ndarray:
        """Spots' coordinates (n, 2) as pixels from the picture's top left corner; whole coordinates are centres of pixels."""
        return (np.asarray(xy, np.float64)[:, :2] + 0.5) * self.scale + np.asarray(self.offset)

    def coordinates(self, x: float, y: float) -> tuple[float, float]:
        """Spots' coordinates of a place in the picture."""
        return (x - self.offset[0]) / self.scale - 0.5, (y - self.offset[1]) / self.scale - 0.5


def catalogue(layout: Layout) -> Catalogue:
    """Read what the store holds; what is being removed meanwhile is left out."""
    slides = {slide: record for slide in layout.slides() if (record := layout.attributes(layout.slide(slide)))}
    cohorts = {name: record for name in layout.cohorts() if (record := layout.attributes(layout.cohort(name)))}
    embeddings: dict[str, dict[str, Record]] = {}
    for slide in slides:
        embeddings[slide] = {}
        for key in layout.embeddings(slide):
            if not key.startswith(f"{TOKENS}/"):
                try:
                    array = EmbeddingArray(layout, slide, key)
                except (InputError, FileNotFoundError):  # it went just now
                    continue
                embeddings[slide][key] = {**array.attributes, "dim": array.shape[1]}
    heads = {name: sorted(layout.files.list(f"heads/{name}")) for name in cohorts}
    keys = {key for own in embeddings.values() for key in own}
    indexes = {key: _checksums(layout, key) for key in layout.files.list(INDEXES) if key in keys}
    return Catalogue(slides, cohorts, embeddings, heads, indexes)


def _checksums(layout: Layout, key: str) -> list[str]:
    try:
        card = read_card(layout, key)
    except InputError:
        return ["damaged"]
    return [] if card is None else [file["crc32c"] for file in files(card)]


def slides(held: Catalogue, layout: Layout) -> list[dict[str, Any]]:
    """List the slides: slide, patient, split, spots, genes, image (its kind), width, height, mpp, encoders, cohorts."""
    return [summary(held, layout, slide) for slide in held.slides]


def summary(held: Catalogue, layout: Layout, slide: str) -> dict[str, Any]:
    """Describe a slide, see :func:`slides`."""
    record = held.slides[slide]
    shown = frame(layout, slide, record)
    return {
        "slide": slide,
        "patient": record["patient"],
        "split": record["split"],
        "spots": record["n_spots"],
        "genes": record["n_genes"],
        "image": record["image"] and record["image"]["kind"],
        "width": shown.width,
        "height": shown.height,
        "mpp": shown.mpp,
        "encoders": sorted(held.embeddings[slide]),
        "cohorts": [name for name, cohort in held.cohorts.items() if slide in cohort["split"]],
    }


def frame(layout: Layout, slide: str, record: Record | None = None) -> Frame:
    """Tell which picture of a slide is shown: its image, else the largest thumbnail, else none."""
    record = record or slide_record(layout, slide)
    image, mpp = record["image"], record["mpp"]
    if image is not None and image["kind"] != "patches":
        scale = image["scale"]
        return Frame(image["width"], image["height"], scale, (0.0, 0.0), mpp and mpp / scale, "image")
    found = thumbnail_size(layout, slide)
    if found is not None:
        width, height, scale = found
        return Frame(width, height, scale, (0.0, 0.0), mpp and mpp / scale, "thumbnail")
    xy = coordinates(layout, slide)
    good = None if xy is None else xy[np.isfinite(xy).all(axis=1)]
    if good is None or not len(good):
        return Frame(1, 1, 1.0, (0.0, 0.0), mpp, None)
    low, high = good.min(axis=0), good.max(axis=0)
    margin = max(1.0, _MARGIN * float((high - low).max()))
    width, height = (max(1, int(np.ceil(side + 2 * margin))) for side in (high - low).tolist())
    return Frame(width, height, 1.0, (margin - float(low[0]), margin - float(low[1])), mpp, None)


def thumbnail_size(layout: Layout, slide: str) -> tuple[int, int, float] | None:
    """Width, height and scale (its pixels per pixel of the coordinates) of the largest thumbnail kept; None without one."""
    name = thumbnail_name(layout, slide)
    if name is None:
        return None
    node = f"{layout.slide(slide)}/uns/spatial/{slide}"
    scale = read_elem(layout, f"{node}/scalefactors").get(f"tissue_{name}_scalef")
    if not scale:
        return None
    import zarr

    height, width = zarr.open_array(layout.zarr_store(f"{node}/images/{name}"), mode="r", zarr_format=3).shape[:2]
    return int(width), int(height), float(scale)


def thumbnail_name(layout: Layout, slide: str) -> str | None:
    """Name of the largest thumbnail that the store keeps of a slide: ``hires``, ``lowres``, or None."""
    node = f"{layout.slide(slide)}/uns/spatial/{slide}/images"
    return next((name for name in ("hires", "lowres") if layout.files.exists(f"{node}/{name}/zarr.json")), None)


def thumbnail_pixels(layout: Layout, slide: str) -> np.ndarray:
    """Pixels of that thumbnail: uint8 (h, w, 3).

    Raises
    ------
    InputError
        The store keeps none.
    """
    name = thumbnail_name(layout, slide)
    if name is None:
        raise InputError(f"slide {slide} has no picture")
    values = np.asarray(read_elem(layout, f"{layout.slide(slide)}/uns/spatial/{slide}/images/{name}"))
    if values.dtype.kind == "f":
        values = np.rint(np.clip(values, 0, 1) * 255)
    values = values.astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values[..., :3]


def coordinates(layout: Layout, slide: str) -> np.ndarray | None:
    """Spots' coordinates as stored, float64 (n, 2); None where the slide has none."""
    place = f"{layout.slide(slide)}/obsm/spatial"
    if not layout.files.exists(f"{place}/zarr.json"):
        return None
    return np.asarray(read_rows(layout, place), np.float64)[:, :2]


def spots(layout: Layout, slide: str) -> dict[str, Any]:
    """Give a slide's spots in the frame of its picture.

    Returns
    -------
    dict
        ids (barcodes), xy (float64 (n, 2), pixels of the picture from its top left corner; NaN where unknown), diameter (pixels,
        or None), mpp (µm per pixel, or None).
    """
    record = slide_record(layout, slide)
    shown = frame(layout, slide, record)
    ids = [str(name) for name in read_index(layout, f"{layout.slide(slide)}/obs")]
    xy = coordinates(layout, slide)
    return {
        "ids": ids,
        "xy": np.full((len(ids), 2), np.nan) if xy is None else shown.place(xy),
        "diameter": diameter(record, shown),
        "mpp": shown.mpp,
    }


def diameter(record: Record, shown: Frame) -> float | None:
    """Diameter of a spot in pixels of the picture, None where the slide doesn't say."""
    own = record.get("spot_diameter_px")
    return None if own is None else float(own) * shown.scale


def obs_columns(obs: pd.DataFrame) -> list[dict[str, Any]]:
    """List the columns that spots can be coloured by: name, kind (``number`` or ``category``), categories (how many)."""
    rows = []
    for name in obs.columns:
        number = is_number(obs[name])
        rows.append(
            {
                "name": str(name),
                "kind": "number" if number else "category",
                "categories": None if number else int(obs[name].nunique()),
            }
        )
    return rows


def is_number(column: pd.Series) -> bool:
    """Whether a column is drawn on a scale; truth values and names are categories."""
    return column.dtype.kind in "iuf"


def layers(held: Catalogue, slide: str) -> list[dict[str, Any]]:
    """List the layers that have expression of a slide.

    Returns
    -------
    list of dict
        layer (``counts``, ``cohort:<cohort>/<layer>`` or ``head:<cohort>/<run>``), label, kind (``measured``, ``completed``,
        ``uncertainty``, ``predicted``), unit, genes (how many), uncertainty (the layer that states it, or None).
    """
    rows = []
    if held.slides[slide]["counts_digest"] is not None:
        genes = held.slides[slide]["n_genes"]
        rows.append(_layer("counts", "raw counts", "measured", "counts", genes))
    for cohort, record in held.cohorts.items():
        if slide in record["split"]:
            rows += cohort_layers(cohort, record)
        if held.embeddings[slide]:
            rows += [
                _layer(f"head:{cohort}/{run}", f"predicted by {run} ({cohort})", "predicted", None, record["n_genes"])
                for run in held.heads[cohort]
            ]
    return rows


def cohort_layers(cohort: str, record: Record) -> list[dict[str, Any]]:
    """List the layers of a cohort, see :func:`layers`; the mask isn't expression."""
    rows = []
    for name, card in record["layers"].items():
        if name == "mask":
            continue
        kind = "uncertainty" if "of" in card else "completed" if "source" in card else "measured"
        spread = card.get("spread")
        uncertainty = f"cohort:{cohort}/{spread}" if spread in record["layers"] else None
        row = _layer(f"cohort:{cohort}/{name}", f"{name} ({cohort})", kind, unit(name), record["n_genes"])
        rows.append(row | {"uncertainty": uncertainty})
    return rows


def _layer(layer: str, label: str, kind: str, unit: str | None, genes: int) -> dict[str, Any]:
    return {"layer": layer, "label": label, "kind": kind, "unit": unit, "genes": genes, "uncertainty": None}


def unit(layer: str) -> str | None:
    """Tell the unit of a cohort's layer from its name."""
    name = layer.removesuffix("_spread")
    if name.endswith("deltas"):
        return "log2(1 + TPM) − gene's mean"
    return next((text for ending, text in UNITS.items() if name.endswith(ending)), None)


def cohorts(held: Catalogue) -> list[dict[str, Any]]:
    """List the cohorts: cohort, slides (slide → part), spots, genes, mode, layers, heads."""
    return [
        {
            "cohort": name,
            "slides": record["split"],
            "spots": record.get("spots"),
            "genes": record["n_genes"],
            "mode": record.get("mode"),
            "layers": cohort_layers(name, record),
            "heads": held.heads[name],
        }
        for name, record in held.cohorts.items()
    ]


def encoders(held: Catalogue, layout: Layout) -> list[dict[str, Any]]:
    """List the embeddings by key: key, dim, slides, recipe_id, patch_um, patch_px, encodes, index."""
    rows = []
    for key in held.encoders():
        own = {slide: arrays[key] for slide, arrays in held.embeddings.items() if key in arrays}
        first = next(iter(own.values()))
        recipe = first["recipe"]
        rows.append(
            {
                "key": key,
                "dim": first["dim"],
                "slides": list(own),
                "recipe_id": first["recipe_id"],
                "patch_um": recipe["patch_um"],
                "patch_px": recipe["patch_px"],
                "encodes": not recipe["transform"].get("unverified"),
                "index": _index(layout, key),
            }
        )
    return rows


def _index(layout: Layout, key: str) -> dict[str, Any] | None:
    try:
        card = read_card(layout, key)
        problem = None if card is None or card["plan"]["kind"] == "exact" else stale(layout, card)
    except InputError as error:
        return {"kind": None, "metric": None, "recall": None, "problem": str(error)}
    if card is None:
        return None
    recall = (card.get("recall") or {}).get("recall")
    return {"kind": card["plan"]["kind"], "metric": card["metric"], "recall": recall, "problem": problem}
