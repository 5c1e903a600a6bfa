"""Reports: what a benchmark found, as one HTML page with pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.benchmark.metrics import score
from spared_fm.benchmark.report import Gallery, Overlay, Table, write_report
from spared_fm.extract.source import patch_source
from spared_fm.slides.images import open_image, thumbnail
from spared_fm.slides.patches import PatchSpec
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.nodes import read_elem
from spared_fm.study.cohort import cohort_record, target
from spared_fm.study.cohort_split import units
from spared_fm.study.search import search

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from spared_fm.benchmark.runner import Evaluation
    from spared_fm.store.layout import Layout

THUMBNAIL_PX = 700
GALLERY_HITS = 6


def benchmark_report(
    layout: Layout,
    cohort: str,
    results: Sequence[tuple[str, Evaluation]],
    path: str | Path,
    *,
    notice: str = "",
    facts: Mapping[str, str] | None = None,
    truth: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the report of a benchmark: table of heads, slide overlays, similarity gallery.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name.
    results
        From :func:`spared_fm.study.evaluate.benchmark`.
    path
        HTML file to write.
    notice
        First line of the page; by default says what the scores are computed on.
    facts
        Name → value, shown as a list, besides cohort facts.
    truth
        Slide → noise-free expression (spots, genes) in cohort order, where it is known (synthetic studies).
    """
    record = cohort_record(layout, cohort)
    notice = notice or _notice(cohort, record)
    all_facts = {
        "Cohort": f"{cohort}: {len(record['split'])} slides, {record['n_genes']} genes",
        "Gene panel": f"{record['panel']}, {_fitted_on(record)}",
        "Split": ", ".join(f"{slide}: {part}" for slide, part in record["split"].items()),
        **({"What a score says": record["split_label"]} if record.get("split_label") else {}),
        "Missing entries": f"{record['share_missing']:.1%} of spots × genes",
        **(facts or {}),
    }
    first = [result for result in results if result[1].rows[0]["target"] == results[0][1].rows[0]["target"]]
    key, best = max(first, key=lambda result: result[1].rows[0]["pcc_gene"] or -1.0)  # pictures of the first target
    write_report(
        path,
        title=f"spared-fm: {cohort}",
        notice=notice,
        tables=[_table(results)],
        overlays=_overlays(layout, cohort, best, truth or {}),
        gallery=_galleries(layout, record, key),
        facts=all_facts,
    )


def _notice(cohort: str, record: Mapping[str, Any]) -> str:
    shared = patients_on_both_sides(record)
    text = f"Scores of cohort {cohort} on held-out slides."
    if shared:
        text += f" Patient {', '.join(shared)} is on both sides of the split: they say little about new patients."
    return text


def _fitted_on(record: Mapping[str, Any]) -> str:
    fitted = record.get("preprocessing")
    return f"fitted on {fitted['fitted_on']}" if fitted else "fitted elsewhere or by an older version"


def _table(results: Sequence[tuple[str, Evaluation]]) -> Table:
    names = ("encoder", "head", "target", "split", "pcc_gene", "pcc_patch", "mse", "mae", "r2_gene", "n_spots")
    rows = [{name: row[name] for name in names} for _, found in results for row in found.rows if row["slide"] is None]
    return Table(
        title="Heads",
        rows=rows,
        caption="Pooled over the spots of each held-out split. PCC-Gene: mean over genes of the Pearson correlation over spots.",
    )


def _overlays(layout: Layout, cohort: str, found: Evaluation, truth: Mapping[str, np.ndarray]) -> list[Overlay]:
    """Best and median gene of the best cell, on every held-out slide (four at most)."""
    layer = found.rows[0]["target"]
    cell = f"{found.rows[0]['encoder']} + {found.rows[0]['head']}"
    obs = read_elem(layout, f"{layout.cohort(cohort)}/obs")
    genes = list(read_elem(layout, f"{layout.cohort(cohort)}/var").index)
    measured = target(layout, cohort, layer)
    places = units(obs, cohort_record(layout, cohort)["split"])
    overlays = []
    for unit in sorted(found.predictions)[:4]:
        slide, _, rows = places[unit]
        predicted, values = found.predictions[unit], measured[rows]
        if not np.isfinite(predicted).all(axis=1).any():
            continue
        present = np.isfinite(predicted).all(axis=1)
        scores = np.array(
            [score(values[present, g : g + 1], predicted[present, g : g + 1])["pcc_gene"] for g in range(len(genes))]
        )
        order = np.argsort(np.where(np.isnan(scores), -np.inf, scores))[::-1]
        image, xy, spot_px = slide_picture(layout, slide, obs["barcode"].to_numpy()[rows])
        for label, g in (("best", order[0]), ("median", order[len(order) // 2])):
            panels = {
                "measured" if layer == "lognorm" else f"target ({layer})": values[:, g],
                "predicted": predicted[:, g],
            }
            if unit in truth:
                panels["true (noise-free)"] = truth[unit][:, g]
            overlays.append(
                Overlay(
                    slide=slide,
                    gene=genes[g],
                    thumbnail=image,
                    xy=xy,
                    spot_px=spot_px,
                    panels=panels,
                    pcc={"predicted": float(scores[g])},
                    caption=f"{label.capitalize()} gene of this slide by PCC; {cell}",
                )
            )
    return overlays


def slide_picture(layout: Layout, slide: str, barcodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Give a thumbnail of a slide, and the centres (n, 2) and diameter of the spots, in its pixels."""
    record = slide_record(layout, slide)
    node = layout.slide(slide)
    positions = read_elem(layout, f"{node}/obs").index.get_indexer(barcodes)
    xy = np.asarray(read_elem(layout, f"{node}/obsm/spatial"))[positions]
    if record["image"]["kind"] == "patches":  # no picture of the whole: spots are drawn on white
        scale = THUMBNAIL_PX / float(xy.max())
        image = np.full((*np.ceil(xy.max(0)[::-1] * scale).astype(int) + 10, 3), 255, np.uint8)
    else:
        with open_image(record["image"]["path"]) as reader:
            image, scale = thumbnail(reader, THUMBNAIL_PX)
        scale *= record["image"]["scale"]
    diameter = record["spot_diameter_px"] or 55.0 / record["mpp"]
    return image, xy * scale, diameter * scale


def _galleries(layout: Layout, record: Mapping[str, Any], key: str) -> list[Gallery]:
    """Three query spots of the first held-out slide, and what is most similar on other slides."""
    held_out = [slide for slide, part in record["split"].items() if part != "train"]
    slide = held_out[0]
    barcodes = list(read_elem(layout, f"{layout.slide(slide)}/obs").index)
    absent = EmbeddingArray(layout, slide, key).absent()
    usable = [barcode for row, barcode in enumerate(barcodes) if row not in absent]
    queries = [f"{slide}/{usable[len(usable) * i // 4]}" for i in (1, 2, 3)]
    patients = {record["patients"].get(s) for s in record["split"]}
    exclude = "patient" if None not in patients and len(patients) > 1 else "slide"
    hits = search(
        layout, key, spots=list(dict.fromkeys(queries)), k=GALLERY_HITS, exclude=exclude, slides=list(record["split"])
    )
    patches = _patches(layout, key, [*queries, *(hit["spot"] for hit in hits)])
    return [
        Gallery(
            title=f"Most similar to {query}, leaving out its {exclude}",
            query=patches[query],
            query_label=query,
            hits=[
                (patches[hit["spot"]], f"{hit['spot']} · {hit['similarity']:.3f}")
                for hit in hits
                if hit["query"] == query
            ],
        )
        for query in dict.fromkeys(queries)
    ]


def _patches(layout: Layout, key: str, spots: Sequence[str]) -> dict[str, np.ndarray]:
    """Pixels of spots, slide by slide so that each image is opened once."""
    found: dict[str, np.ndarray] = {}
    for slide in sorted({spot.split("/", 1)[0] for spot in spots}):
        recipe = EmbeddingArray(layout, slide, key).recipe
        reader, places = patch_source(layout, slide, PatchSpec(recipe.patch_um, recipe.patch_px, recipe.resampling))
        barcodes = read_elem(layout, f"{layout.slide(slide)}/obs").index
        for spot in {s for s in spots if s.split("/", 1)[0] == slide}:
            row = barcodes.get_loc(spot.split("/", 1)[1])
            found[spot] = reader.read(places[row : row + 1])[0]
    return found


def patients_on_both_sides(record: Mapping[str, Any]) -> list[str]:
    """Name the patients of a cohort who are both trained on and held out."""
    sides: dict[str, set[bool]] = {}
    for slide, part in record["split"].items():
        patient = record["patients"].get(slide)
        if patient is not None:
            sides.setdefault(patient, set()).update(one == "train" for one in part.split("+"))
    return sorted(patient for patient, found in sides.items() if len(found) == 2)
