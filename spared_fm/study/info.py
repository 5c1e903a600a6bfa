"""Info: what a store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.layout import TOKENS
from spared_fm.study.index_open import overview
from spared_fm.study.runs import last_runs
from spared_fm.study.usage import entries, total

if TYPE_CHECKING:
    from spared_fm.store.layout import Layout


def info(layout: Layout) -> dict[str, Any]:
    """List slides with their embeddings, cohorts with their layers, fitted heads, and indexes.

    Parameters
    ----------
    layout
        The store.

    Returns
    -------
    dict
        store; slides: rows with slide, patient, split, spots, genes, image, mpp, embeddings (key → finished and planned
        chunks, bytes), bytes (of the slide without its embeddings); cohorts: rows with cohort, genes, split, split_by,
        split_label (what a score on it says), mode and fitted_on (None where an older version made it), layers, heads, bytes
        (heads included); indexes: rows as :func:`spared_fm.study.index_open.overview` gives them; runs: the newest, as recorded,
        with stages (seconds, summed over cores) and limit (the stage that held the run up); bytes: disk use by part (slides,
        embeddings, cohorts, heads, indexes, other) and ``total``.
    """
    slides = []
    for slide in layout.slides():
        record = slide_record(layout, slide)
        sizes = _sizes(layout, slide)
        arrays = {key: EmbeddingArray(layout, slide, key) for key in layout.embeddings(slide)}
        slides.append(
            {
                "slide": slide,
                "patient": record["patient"],
                "split": record["split"],
                "spots": record["n_spots"],
                "genes": record["n_genes"],
                "image": record["image"] and record["image"]["kind"],
                "mpp": record["mpp"],
                "embeddings": {
                    key: {
                        "dim": a.shape[1],
                        "chunks": a.n_chunks,
                        "finished": a.n_chunks - len(a.missing()),
                        "bytes": sizes.get(key, 0),
                    }
                    for key, a in arrays.items()
                },
                "bytes": sum(size for key, size in sizes.items() if key not in arrays),
            }
        )
    cohorts = []
    for cohort in layout.cohorts():
        record = layout.attributes(layout.cohort(cohort)) or {}
        cohorts.append(
            {
                "cohort": cohort,
                "genes": record["n_genes"],
                "split": record["split"],
                "split_by": record.get("split_by"),
                "split_label": record.get("split_label"),
                "mode": record.get("mode"),
                "fitted_on": record.get("preprocessing", {}).get("fitted_on"),
                "layers": sorted(record["layers"]),
                "heads": layout.files.list(f"heads/{cohort}"),
                "bytes": total(layout, layout.cohort(cohort)) + total(layout, f"heads/{cohort}"),
            }
        )
    use = {
        "slides": sum(row["bytes"] for row in slides),
        "embeddings": sum(array["bytes"] for row in slides for array in row["embeddings"].values()),
        **{name: total(layout, name) for name in ("heads", "indexes")},
        "cohorts": sum(total(layout, layout.cohort(cohort)) for cohort in layout.cohorts()),
    }
    whole = total(layout, "")
    use |= {"other": whole - sum(use.values()), "total": whole}
    return {
        "store": str(layout.root),
        "slides": slides,
        "cohorts": cohorts,
        "indexes": overview(layout),
        "runs": last_runs(layout),
        "bytes": use,
    }


def _sizes(layout: Layout, slide: str) -> dict[str, int]:
    """Bytes by array key; what else the slide takes is under other names."""
    node = layout.slide(slide)
    sizes: dict[str, int] = {}
    for entry in entries(layout, node):
        parts = entry.key.removeprefix(f"{node}/").split("/")
        name = parts[1] if parts[0] == "obsm" and len(parts) > 2 else ""
        sizes[name] = sizes.get(name, 0) + entry.bytes
    grids = layout.tokens(slide)
    for entry in entries(layout, grids):
        name = f"{TOKENS}/{entry.key.removeprefix(f'{grids}/').split('/')[0]}"
        sizes[name] = sizes.get(name, 0) + entry.bytes
    return sizes
