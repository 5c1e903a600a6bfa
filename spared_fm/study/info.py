"""Info: what a store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.store.embeddings import EmbeddingArray, slide_record

if TYPE_CHECKING:
    from spared_fm.store.layout import Layout


def info(layout: Layout) -> dict[str, Any]:
    """List slides with their embeddings, cohorts with their layers, and fitted heads.

    Parameters
    ----------
    layout
        The store.

    Returns
    -------
    dict
        store; slides: rows with slide, patient, split, spots, genes, image, mpp, embeddings (key → finished and planned
        chunks); cohorts: rows with cohort, genes, split, layers, heads.
    """
    slides = []
    for slide in layout.slides():
        record = slide_record(layout, slide)
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
                    key: {"dim": a.shape[1], "chunks": a.n_chunks, "finished": a.n_chunks - len(a.missing())}
                    for key, a in arrays.items()
                },
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
                "layers": sorted(record["layers"]),
                "heads": layout.files.list(f"heads/{cohort}"),
            }
        )
    return {"store": str(layout.root), "slides": slides, "cohorts": cohorts}
