"""Cohorts: from slides to targets, and their completion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.layout import check_name
from spared_fm.store.nodes import read_elem, read_node, write_layer, write_node
from spared_fm.store.recipe import digest
from spared_fm.study.encode import choose_slides

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import anndata as ad

    from spared_fm.store.layout import Layout


def cohort(
    layout: Layout,
    name: str,
    *,
    slides: str | Sequence[str] | None = None,
    split: Mapping[str, str] | str | Path | None = None,
    split_by: str | None = None,
    seed: int = 0,
    n_genes: int = 128,
    panel: str = "variance",
) -> dict[str, Any]:
    """Join slides into a cohort with one gene panel and one split; the panel is fitted on training slides only.

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    slides
        Glob or ids; by default all slides that have counts.
    split
        Slide → ``train``/``val``/``test``, or a CSV file with columns slide, split; by default what ingest was told.
    split_by
        ``patient`` or ``slide``: split at random (``seed``) instead.
    n_genes, panel
        Panel size, and ``variance``, ``moran``, ``hvg`` or a file of gene names.

    Returns
    -------
    dict
        cohort, status (``added``, ``unchanged``), spots, genes, slides, split, panel, share_missing, warnings.

    Raises
    ------
    InputError
        No split for a slide, no training slide, no genes in common, or the name is taken by a cohort with other settings.
    """
    from spared_fm.benchmark.splits import check_split
    from spared_fm.targets.cohort import build_cohort

    check_name(name, "cohort")
    chosen = [
        s for s in choose_slides(layout, slides) if slides is not None or slide_record(layout, s)["counts_digest"]
    ]
    records = {slide: slide_record(layout, slide) for slide in chosen}
    for slide, record in records.items():
        if record["counts_digest"] is None:
            raise InputError(f"slide {slide} has no counts; leave it out of the cohort (--slides)")
    patients = {slide: record["patient"] for slide, record in records.items()}
    parts = _split(records, split, split_by, seed)
    warnings = check_split(parts, patients)
    parents = {s: {k: r[k] for k in ("counts_digest", "spots_digest", "fingerprint")} for s, r in records.items()}
    settings = {
        "panel": _panel_identity(panel),
        "n_genes": n_genes,
        "split": parts,
        "patients": patients,
        "parents": parents,
    }
    node = layout.cohort(name)
    known = layout.attributes(node)
    if known is None:
        built = build_cohort(
            {slide: _loader(layout, slide) for slide in chosen},
            split=parts,
            patients=patients,
            n_genes=n_genes,
            panel=panel,
        )
        layers = {
            layer: {"method": "measured" if layer != "lognorm" else "ln(1 + counts per 1e4)"} for layer in built.layers
        }
        record = {
            **settings,
            "cohort": name,
            "settings_digest": digest(settings),
            "layers": layers,
            "share_missing": float(1 - np.mean(built.layers["mask"])),
        }
        write_node(layout, node, built, record)
        status = "added"
    elif known["settings_digest"] == digest(settings):
        record, status = known, "unchanged"
    else:
        raise InputError(f"cohort {name!r} exists with other settings; give this one another --name")
    return {
        "cohort": name,
        "status": status,
        "spots": sum(r["n_spots"] for r in records.values()),
        "genes": n_genes,
        "panel": panel,
        "split": parts,
        "share_missing": record["share_missing"],
        "warnings": warnings,
    }


def complete(layout: Layout, name: str, *, method: str = "adaptive-median", source: str = "lognorm") -> dict[str, Any]:
    """Fill the entries of a cohort's layer that dropout lost, and register the result as a layer.

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    method
        ``adaptive-median``.
    source
        Layer to complete.

    Returns
    -------
    dict
        cohort, layer, method, source, share_missing_before, share_missing_after.

    Raises
    ------
    InputError
        Unknown cohort, layer or method.
    """
    from spared_fm.targets.completion.registry import complete as run_completion

    record = cohort_record(layout, name)
    _require_layer(layout, name, record, source)
    layer, values = run_completion(cohort_data(layout, name), method=method, source=source)
    before = float(np.mean(read_elem(layout, f"{layout.cohort(name)}/layers/{source}") == 0))
    card = {"method": method, "source": source, "parents": record["settings_digest"]}
    write_layer(layout, name, layer, values, card)
    return {
        "cohort": name,
        "layer": layer,
        "method": method,
        "source": source,
        "share_missing_before": before,
        "share_missing_after": float(np.mean(values == 0)),
    }


def cohort_record(layout: Layout, name: str) -> dict[str, Any]:
    """Our record of a cohort; raises :class:`InputError` for an unknown one."""
    record = layout.attributes(layout.cohort(name))
    if record is None:
        known = ", ".join(layout.cohorts()) or "none"
        raise InputError(
            f"{layout.root}: no cohort {name!r} in the store (cohorts: {known}); `spared-fm cohort` makes one"
        )
    return record


def cohort_data(layout: Layout, name: str) -> ad.AnnData:
    """Read a whole cohort with its registered layers as AnnData (spots × panel genes)."""
    record = cohort_record(layout, name)
    adata = read_node(layout, layout.cohort(name))
    for layer in set(adata.layers) - set(record["layers"]):
        del adata.layers[layer]
    return adata


def target(layout: Layout, name: str, layer: str) -> np.ndarray:
    """Read a registered layer of a cohort, shape (spots, genes)."""
    _require_layer(layout, name, cohort_record(layout, name), layer)
    return np.asarray(read_elem(layout, f"{layout.cohort(name)}/layers/{layer}"))


def _require_layer(layout: Layout, name: str, record: dict[str, Any], layer: str) -> None:
    if layer not in record["layers"]:
        raise InputError(f"cohort {name!r} has no layer {layer!r} (layers: {', '.join(sorted(record['layers']))})")


def _split(
    records: dict[str, dict[str, Any]], split: Mapping[str, str] | str | Path | None, split_by: str | None, seed: int
) -> dict[str, str]:
    if split is not None and split_by is not None:
        raise InputError("--split and --split-by exclude each other; give one")
    if split_by is not None:
        from spared_fm.benchmark.splits import split_by as divide

        if split_by not in ("patient", "slide"):
            raise InputError(f"--split-by {split_by!r} is not patient or slide")
        patients = {slide: record["patient"] for slide, record in records.items()}
        return dict(divide(list(records), patients, split_by, seed))  # type: ignore[arg-type]
    if split is None:
        parts = {slide: record["split"] for slide, record in records.items()}
        without = [slide for slide, part in parts.items() if part is None]
        if without:
            raise InputError(
                f"slide {without[0]} has no split ({len(without)} of {len(parts)} have none); "
                "give --split FILE, --split-by patient|slide, or ingest it again with --split"
            )
        return parts
    named = dict(_read_split(split)) if isinstance(split, str | Path) else dict(split)
    unknown = sorted(named.keys() - records.keys())
    if unknown:
        raise InputError(
            f"the split names slide {unknown[0]!r}, which is not in the cohort; check its spelling or --slides"
        )
    without = [slide for slide in records if slide not in named]
    if without:
        raise InputError(
            f"the split says nothing about slide {without[0]}; add it, or leave the slide out with --slides"
        )
    return {slide: named[slide] for slide in records}


def _read_split(path: str | Path) -> dict[str, str]:
    try:
        table = pd.read_csv(path, dtype=str)
        return dict(zip(table["slide"], table["split"], strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: no such split file; it is a CSV with the columns slide, split") from None
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV with the columns slide, split ({error})") from error


def _panel_identity(panel: str) -> str:
    """Name of the panel rule; for a file, the digest of its content, so that an edited list is another panel."""
    if panel in ("variance", "moran", "hvg"):
        return panel
    try:
        return f"file:{digest(Path(panel).read_text().split())}"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--panel {panel}: not variance, moran or hvg, and no readable file of gene names") from error


def _loader(layout: Layout, slide: str) -> Callable[[], ad.AnnData]:
    def load() -> ad.AnnData:
        """Read counts and positions only: embeddings and images of the slide stay on disk."""
        import anndata

        node = layout.slide(slide)
        return anndata.AnnData(
            X=read_elem(layout, f"{node}/X"),
            obs=read_elem(layout, f"{node}/obs"),
            var=read_elem(layout, f"{node}/var"),
            obsm={"spatial": read_elem(layout, f"{node}/obsm/spatial")},
        )

    return load
