"""Completion methods by name, applied to a cohort slide by slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from spared_fm.errors import InputError
from spared_fm.targets.completion.median import adaptive_median
from spared_fm.targets.neighbors import LAYOUT_NEIGHBORS, grid_layout

if TYPE_CHECKING:
    from anndata import AnnData

Completion = Callable[[np.ndarray, np.ndarray, str | None], np.ndarray]
"""(values (n, g), xy (n, 2), layout of the slide) → completed values (n, g) float32."""


def _median(values: np.ndarray, xy: np.ndarray, layout: str | None) -> np.ndarray:
    return adaptive_median(values, None, xy, k=LAYOUT_NEIGHBORS.get(layout or "hex", 6))


COMPLETIONS: dict[str, tuple[str, Completion]] = {"adaptive-median": ("d", _median)}
"""Method → (prefix of the layer it writes, function for one slide)."""


def complete(cohort: AnnData, *, method: str = "adaptive-median", source: str = "lognorm") -> tuple[str, np.ndarray]:
    """Complete one layer of a cohort, each slide on its own.

    Parameters
    ----------
    cohort
        Cohort as :func:`spared_fm.targets.cohort.build_cohort` makes it: ``obs['slide']``,
        ``obsm['spatial']``, and ``obs['array_row']`` / ``obs['array_col']`` where known (they decide
        between 6 and 8 neighbours; unknown: 6).
    method
        Key of :data:`COMPLETIONS`.
    source
        Layer to complete, non-negative; its exact zeros are the missing entries.

    Returns
    -------
    tuple of str and np.ndarray
        Name of the new layer (``d_<source>`` for the adaptive median) and its values, spots × genes,
        float32, in the unit of ``source``. The cohort itself is left as it was.

    Raises
    ------
    InputError
        Unknown method, or no such layer.
    """
    if method not in COMPLETIONS:
        raise InputError(f"unknown completion {method!r}: choose from {', '.join(sorted(COMPLETIONS))}")
    if source not in cohort.layers:
        raise InputError(f"the cohort has no layer {source!r}: it has {', '.join(sorted(cohort.layers)) or 'none'}")
    prefix, fill = COMPLETIONS[method]
    values = np.asarray(cohort.layers[source], np.float32)
    xy = np.asarray(cohort.obsm["spatial"], np.float64)
    slide_of = cohort.obs["slide"].astype(str).to_numpy()
    out = np.empty_like(values)
    for slide in dict.fromkeys(slide_of):
        rows = np.flatnonzero(slide_of == slide)
        out[rows] = fill(values[rows], xy[rows], cohort_layout(cohort, rows))
    return f"{prefix}_{source}", out


def cohort_layout(cohort: AnnData, rows: np.ndarray) -> str | None:
    """Grid layout of one slide's rows of a cohort, from its array positions (None: unknown)."""
    if "array_row" not in cohort.obs or "array_col" not in cohort.obs:
        return None
    array_row, array_col = (cohort.obs[c].to_numpy(np.float64)[rows] for c in ("array_row", "array_col"))
    return grid_layout(array_row, array_col)
