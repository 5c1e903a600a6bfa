"""Completion of a cohort in the store: fit a method, serve what it completes as a layer, score methods."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.nodes import write_layer
from spared_fm.store.recipe import digest
from spared_fm.study.cohort import cohort_data, cohort_record, target
from spared_fm.study.progress import steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata as ad

    from spared_fm.store.layout import Layout
    from spared_fm.targets.completion.data import Completer, Panel

COMPLETERS = "completers"
"""Folder of fitted completers: ``completers/<cohort>/<method>.<source>/``."""

BUILT = "d_log1p"
"""Layer that SpaRED's preprocessing builds with a cohort, and that the adaptive median would make of ``log1p``."""

SPREAD = "_spread"
"""Ending of the layer with the uncertainty of a completed layer."""


def complete(
    layout: Layout,
    name: str,
    *,
    method: str = "adaptive-median",
    source: str | None = None,
    layer: str | None = None,
    seed: int = 0,
    scores: Sequence[Mapping[str, Any]] = (),
    show: bool = True,
) -> dict[str, Any]:
    """Fill the entries of a cohort's layer that dropout lost, and register the result as a layer.

    The method is fitted on training slides (validation slides choose), or taken from an earlier call with the same cohort,
    source and seed. Measured entries stay as they are.

    Parameters
    ----------
    layout
        The store.
    name
        Cohort name.
    method
        See :data:`spared_fm.targets.completion.registry.METHODS`.
    source
        Layer to complete; default ``log1p`` where the cohort has it, else ``lognorm``.
    layer
        Name of the new layer; default that of :func:`spared_fm.targets.completion.registry.layer_name`.
    seed
        Of the fit.
    scores
        Rows of a summary (:func:`evaluate`) to keep in the layer's card; those of other methods are left out.
    show
        False hides the progress bar.

    Returns
    -------
    dict
        cohort, layer, spread (name of the layer with the uncertainty of completed entries, or None), method, source,
        fit_id (None for ``d_log1p`` of a cohort that was built with it, which is left as it is), share_missing_before,
        share_missing_after.

    Raises
    ------
    InputError
        Unknown cohort, layer or method, or the new layer has the name of one that the cohort was built with.
    """
    from spared_fm.targets.completion.cohort import complete_layer
    from spared_fm.targets.completion.registry import layer_name

    record = cohort_record(layout, name)
    source = source or ("log1p" if "log1p" in record["layers"] else "lognorm")
    completed = layer or layer_name(method, source)
    built = "source" not in record["layers"].get(completed, {"source": source})
    if built and (layer, completed) != (None, BUILT):
        raise InputError(
            f"cohort {name!r} has a layer {completed!r} that was built with it: use it as it is, or give another layer name"
        )
    adata = _counted(layout, name, record)
    adata.layers[source] = target(layout, name, source)
    uncertainty, fit_id = None, None
    if built:  # SpaRED's preprocessing completes by the adaptive median itself
        values = target(layout, name, completed)
    else:
        completer, fit_id = _fitted(layout, name, adata, record, method, source, seed, show)
        values, spread = complete_layer(adata, completer, source)
        card = {
            "method": method,
            "source": source,
            "mask": "mask",
            "seed": seed,
            "fit_id": fit_id,
            "parents": record["settings_digest"],
            "scores": [dict(row) for row in scores if row["method"] == method],
        }
        if spread is not None:
            uncertainty = f"{completed}{SPREAD}"
            write_layer(layout, name, uncertainty, spread, {**card, "of": completed})
        write_layer(layout, name, completed, values, {**card, "spread": uncertainty})
    mask = np.asarray(adata.layers["mask"], bool)
    return {
        "cohort": name,
        "layer": completed,
        "spread": uncertainty,
        "method": method,
        "source": source,
        "fit_id": fit_id,
        "share_missing_before": float(1 - mask.mean()),
        "share_missing_after": float(np.mean(values[~mask] == 0) * (1 - mask.mean())) if not mask.all() else 0.0,
    }


def complete_slide(
    layout: Layout, name: str, slide: ad.AnnData, *, method: str, source: str, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Complete a slide outside the cohort with a completer that was fitted for it.

    Parameters
    ----------
    layout, name, method, source, seed
        As for :func:`complete`, which has to be called before.
    slide
        The cohort's genes in its order, layer ``source`` (and ``mask``, and what else
        :func:`spared_fm.targets.completion.cohort.sections` takes), ``obs['slide']``, ``obsm['spatial']``.

    Returns
    -------
    tuple of np.ndarray
        Values and spread (or None), spots × genes, float32.

    Raises
    ------
    InputError
        Nothing fitted, or another panel.
    """
    from spared_fm.targets.completion import registry
    from spared_fm.targets.completion.cohort import complete_layer

    record = cohort_record(layout, name)
    node = _node(name, method, source, _fit_id(record, method, source, seed))
    if not layout.files.exists(f"{node}/{registry.CARD}"):
        raise InputError(f"cohort {name!r}: {method} is not fitted on {source!r}; `spared-fm complete` does it")
    with layout.files.local_folder(node) as folder:
        completer = registry.load(folder, list(slide.var_names.astype(str)))
    return complete_layer(slide, completer, source)


def evaluate(
    layout: Layout,
    name: str,
    *,
    methods: Sequence[str] | None = None,
    source: str | None = None,
    rules: Sequence[str | float] | None = None,
    repeats: int = 10,
    splits: Sequence[str] | None = None,
    seed: int = 0,
    report: str | Path | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Score methods on hidden entries of the cohort, the same ones for each.

    Parameters
    ----------
    layout, name, seed, show
        As for :func:`complete`.
    methods
        Default: all.
    source
        ``log1p`` (default where the cohort has it) or ``lognorm``: layers that are computed anew from the counts that stay
        visible.
    rules, repeats
        See :func:`spared_fm.targets.completion.evaluate.evaluate`.
    splits
        Default: validation and test, as far as the cohort has them.
    report
        HTML file to write.

    Returns
    -------
    dict
        cohort, source, methods, split_label, rows, summary, and ``scored``: what the columns are scored on.

    Raises
    ------
    InputError
        Unknown cohort, method, rule or split, or a layer that cannot be computed from counts.
    """
    from spared_fm.targets.completion import evaluate as core
    from spared_fm.targets.completion.cohort import NO_LENGTHS, has_lengths, raw_counts
    from spared_fm.targets.completion.data import panel_of
    from spared_fm.targets.completion.hiding import LAYERS, section
    from spared_fm.targets.completion.registry import METHODS

    record = cohort_record(layout, name)
    adata = _counted(layout, name, record)
    source = source or ("log1p" if has_lengths(adata) else "lognorm")
    if source not in LAYERS:
        raise InputError(f"{source!r} cannot be computed from visible counts alone: evaluate on {' or '.join(LAYERS)}")
    if source == "log1p" and not has_lengths(adata):
        raise InputError(NO_LENGTHS)
    adata.layers[source] = target(layout, name, source)
    raw = raw_counts(adata)
    there = {one.split for one in raw}
    splits = splits or [split for split in ("val", "test") if split in there] or ["train"]
    panel = panel_of([section(one, layer=source) for one in raw if one.split == "train"], list(adata.var_names))
    fitted = {
        method: _fitted(layout, name, adata, record, method, source, seed, show)[0] for method in methods or METHODS
    }
    with steps(f"scoring {len(fitted)} methods", show=show) as progress:
        found = core.evaluate(
            fitted,
            raw,
            panel,
            rules=rules or core.SHARES,
            repeats=repeats,
            splits=splits,
            layer=source,
            seed=seed,
            progress=progress,
        )
    scored = {f"{key}mse": said for key, said in core.SCORED.items()}
    label = record.get("split_label", "")
    if report is not None:
        from spared_fm.benchmark.completion_report import write_completion_report

        write_completion_report(
            report,
            title=f"Completion of {source} in cohort {name}",
            notice=f"Completion scores of cohort {name} on hidden measured entries; true zeros are never among them, the "
            "columns “zeros-too” stand beside. " + (label or "The split has no label."),
            facts={"Cohort": f"{adata.n_obs} spots of {len(record['split'])} slides, {adata.n_vars} genes"},
            summary=found.summary,
            scored=scored,
            rows=found.rows,
            split_label=label,
            fitted="methods: training slides, once, with nothing hidden for good; validation slides choose where a method "
            f"stops. Genes and corrections: {record.get('preprocessing', {}).get('fitted_on', 'not recorded')}",
        )
    return {
        "cohort": name,
        "source": source,
        "methods": list(fitted),
        "split_label": label,
        "rows": found.rows,
        "summary": found.summary,
        "scored": scored,
    }


def _fitted(
    layout: Layout,
    name: str,
    adata: ad.AnnData,
    record: Mapping[str, Any],
    method: str,
    source: str,
    seed: int,
    show: bool,
) -> tuple[Completer, str]:
    """Load the method as it was fitted for this cohort, layer and seed, or fit and keep it; with its id."""
    from spared_fm.targets.completion import registry
    from spared_fm.targets.completion.cohort import sections
    from spared_fm.targets.completion.data import panel_of

    kind = registry.method(method)
    genes = list(adata.var_names.astype(str))
    fit_id = _fit_id(record, method, source, seed)
    node = _node(name, method, source, fit_id)
    if layout.files.exists(f"{node}/{registry.CARD}"):
        with layout.files.local_folder(node) as folder:
            return registry.load(folder, genes), fit_id
    given = sections(adata, source)
    parts = dict(zip(given, _splits(adata), strict=True))
    train, validate = ([one for key, one in given.items() if parts[key] == part] for part in ("train", "val"))
    panel: Panel = panel_of(train, genes)
    with layout.files.staging_folder() as staging, steps(f"fitting {method}", show=show) as progress:
        # beside the store's data: a killed training goes on where it was. A store elsewhere starts anew
        checkpoint = layout.root / f"{node}.training" if isinstance(layout.root, Path) else staging / "training"
        checkpoint.mkdir(parents=True, exist_ok=True)
        completer = kind().fit(train, validate, panel, seed=seed, checkpoint=checkpoint, progress=progress)
        completer.save(staging / method)
        layout.files.publish(staging / method, node, last=registry.CARD)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return completer, fit_id


def _counted(layout: Layout, name: str, record: Mapping[str, Any]) -> ad.AnnData:
    """Read a cohort with its counts and its mask, as far as it has them, and no other layer."""
    return cohort_data(layout, name, layers=[layer for layer in ("counts", "mask") if layer in record["layers"]])


def _splits(adata: ad.AnnData) -> list[str]:
    from spared_fm.targets.completion.cohort import pieces

    splits = adata.obs["split"].astype(str).to_numpy()
    return [str(splits[rows[0]]) for rows in pieces(adata).values()]


def _fit_id(record: Mapping[str, Any], method: str, source: str, seed: int) -> str:
    """Identity of a fit: the cohort's settings and parents, and how the source layer was made."""
    made = {"cohort": record["settings_digest"], "layer": record["layers"].get(source), "method": method}
    return digest({**made, "source": source, "seed": seed})[:16]


def _node(name: str, method: str, source: str, fit_id: str) -> str:
    return f"{COMPLETERS}/{name}/{method}.{source}.{fit_id[:8]}"
