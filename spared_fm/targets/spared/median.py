"""Adaptive median completion of one slide."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.targets.spared.graph import Hops

_BLOCK_VALUES = 1 << 22
_MOST_GENES, _FEWEST_GENES = 96, 8
_WORTH_A_THREAD = 1 << 16  # values


def complete_median(values: np.ndarray, hops: Hops, missing: np.ndarray | None = None) -> np.ndarray:
    """Fill the missing entries of one slide with the median of a growing neighbourhood (SpaRED, arXiv 2407.13027).

    A missing entry takes the median over the spot and all spots within h hops, zeros and its own zero included, for the
    smallest h at which that median is not zero; else the median of the gene's non-zero values on the slide; else, for a
    gene that is zero all over the slide, 0. Medians are taken over the values given, never over filled ones; genes are
    independent.

    Parameters
    ----------
    values
        Non-negative expression of one slide, spots × genes.
    hops
        Of :func:`spared_fm.targets.spared.graph.hops_around` for the spots of that slide.
    missing
        Spots × genes, bool: the entries to fill; they count as zero, whatever ``values`` holds there. Default: the zeros.

    Returns
    -------
    np.ndarray
        Spots × genes, float32 if ``values`` are, else float64: medians are taken in this precision. Entries that were not
        missing are unchanged.

    Raises
    ------
    InputError
        Negative or non-finite values, or shapes that do not fit.

    Notes
    -----
    Compiled at first use (seconds; kept on disk where that is possible). Runs on as many threads as NUMBA_NUM_THREADS and
    OMP_NUM_THREADS allow; the result does not depend on it. Memory beyond input and output stays near 40 MiB a thread up to
    half a million spots.
    """
    values = np.asarray(values)
    if values.dtype != np.float32:
        values = values.astype(np.float64, copy=False)
    if values.ndim != 2 or len(values) != len(hops.ends):
        raise InputError(f"median completion: {values.shape} values do not fit the {len(hops.ends)} spots of the hops")
    if values.size and not (values.min() >= 0 and values.max() < np.inf):  # NaN is neither
        raise InputError("median completion needs finite, non-negative expression (use the log1p layer)")
    if missing is None:
        missing = values == 0
    elif np.shape(missing) != values.shape:
        raise InputError(f"median completion: mask {np.shape(missing)} does not fit values {values.shape}")
    from spared_fm.targets.spared.kernels import fill_medians  # compiles

    n_genes = values.shape[1]
    width = min(_MOST_GENES, max(_FEWEST_GENES, _BLOCK_VALUES // max(1, len(values))))
    filled, missing = np.empty(values.shape, values.dtype), np.asarray(missing, bool)

    def fill(start: int) -> None:
        stop = min(start + width, n_genes)
        fill_medians(values, missing, filled, hops.spots, hops.ends, start, stop, values.dtype.type(2))

    starts = range(0, n_genes, width)
    threads = min(_threads(), len(starts)) if values.size >= _WORTH_A_THREAD else 1
    if threads <= 1:
        for start in starts:
            fill(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, starts))
    return filled


def _threads() -> int:
    from numba import config

    own: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # by default the cores that this process may use
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(own, int(told)) if told.isdecimal() else own
