"""Scores of predicted against true expression, with the rule for constant genes written down.

Rules
-----
* An entry is one (spot, gene). ``which="all"`` scores every entry; ``"measured"`` only those where ``mask``
  is True, in every metric: a gene is then scored over its measured spots, a spot over its measured genes.
* A gene with fewer than two entries, or whose truth is constant over them, has no PCC and no R2: it is left
  out of both means, since no prediction could do well or badly on it.
* A gene whose truth varies but whose prediction is constant has PCC 0 (it explains nothing) and its ordinary
  R2.
* The same holds for spots in PCC-Patch and R2-Patch.
* MSE and MAE are means over all scored entries, constant genes included.
* Constant means that the values differ by no more than four units of rounding of their dtype at their size.
* A mean over nothing is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Which = Literal["all", "measured"]


def score(
    y_true: ArrayLike, y_pred: ArrayLike, *, mask: ArrayLike | None = None, which: Which = "all"
) -> dict[str, Any]:
    """Score predictions, all spots pooled.

    Parameters
    ----------
    y_true, y_pred
        (spots, genes). Entries that are not scored may hold anything.
    mask
        (spots, genes) bool, True where an entry was measured; needed for ``which="measured"``.
    which
        Score all entries or the measured ones.

    Returns
    -------
    dict
        ``pcc_gene, pcc_patch, mse, mae, r2_gene, r2_patch`` (float, NaN where nothing could be scored),
        ``n_spots`` (rows), ``n_entries`` (entries scored), ``n_genes_scored`` and ``n_spots_scored`` (that
        entered PCC and R2).

    Raises
    ------
    InputError
        Shapes that differ, no entries at all, ``"measured"`` without a mask, or NaN or infinite values among
        the scored.
    """
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise InputError(f"truth has shape {truth.shape}, prediction {predicted.shape}: both must be (spots, genes)")
    if truth.size == 0:
        raise InputError(f"nothing to score: truth has shape {truth.shape}")
    seen = _scored(truth.shape, mask, which)
    t, p = _values(truth, seen, "truth"), _values(predicted, seen, "prediction")

    difference = t - p
    entries = int(seen.sum())
    gene, spot = (
        _along(0, t, p, truth.dtype, predicted.dtype, seen),
        _along(1, t, p, truth.dtype, predicted.dtype, seen),
    )
    return {
        "pcc_gene": _mean(gene[0]),
        "pcc_patch": _mean(spot[0]),
        "mse": float(np.sum(difference**2) / entries) if entries else float("nan"),
        "mae": float(np.sum(np.abs(difference)) / entries) if entries else float("nan"),
        "r2_gene": _mean(gene[1]),
        "r2_patch": _mean(spot[1]),
        "n_spots": len(truth),
        "n_entries": entries,
        "n_genes_scored": len(gene[0]) - int(np.isnan(gene[0]).sum()),
        "n_spots_scored": len(spot[0]) - int(np.isnan(spot[0]).sum()),
    }


def gene_scores(
    y_true: ArrayLike, y_pred: ArrayLike, *, mask: ArrayLike | None = None, which: Which = "all"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PCC and R2 of each gene, (genes,) float64, by the rules above; NaN where a gene is left out.

    Parameters and errors are those of :func:`score`.
    """
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise InputError(f"truth has shape {truth.shape}, prediction {predicted.shape}: both must be (spots, genes)")
    seen = _scored(truth.shape, mask, which)
    t, p = _values(truth, seen, "truth"), _values(predicted, seen, "prediction")
    return _along(0, t, p, truth.dtype, predicted.dtype, seen)


def _scored(shape: tuple[int, ...], mask: ArrayLike | None, which: str) -> NDArray[np.bool_]:
    """Return which entries are scored."""
    if which not in ("all", "measured"):
        raise InputError(f"can't score {which!r} entries: use 'all' or 'measured'")
    if which == "all":
        return np.ones(shape, dtype=bool)
    if mask is None:
        raise InputError("scoring measured entries needs a mask: the cohort's layer 'mask'")
    seen = np.asarray(mask)
    if seen.shape != shape or seen.dtype != bool:
        raise InputError(f"the mask has shape {seen.shape} and dtype {seen.dtype}: it must be bool of shape {shape}")
    return seen


def _values(values: NDArray[Any], seen: NDArray[np.bool_], what: str) -> NDArray[np.float64]:
    """Return the scored values in float64, 0 elsewhere."""
    out = np.where(seen, values, 0.0).astype(np.float64)
    if not np.isfinite(out).all():
        raise InputError(f"the {what} holds NaN or infinite values among the scored entries: drop those spots")
    return out


def _along(
    axis: int,
    t: NDArray[np.float64],
    p: NDArray[np.float64],
    t_dtype: np.dtype[Any],
    p_dtype: np.dtype[Any],
    seen: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PCC and R2 of each gene (axis 0) or each spot (axis 1); NaN where the rule leaves it out."""
    count = seen.sum(axis=axis, keepdims=True)
    scored = ~_constant(axis, t, t_dtype, seen).squeeze(axis)
    flat = _constant(axis, p, p_dtype, seen).squeeze(axis)
    t_centred = np.where(seen, t - t.sum(axis=axis, keepdims=True) / np.maximum(count, 1), 0.0)
    p_centred = np.where(seen, p - p.sum(axis=axis, keepdims=True) / np.maximum(count, 1), 0.0)
    tt = np.sum(t_centred**2, axis=axis)
    scored &= tt > 0  # squares can underflow

    pcc = np.full(scored.shape, np.nan)
    pcc[scored & flat] = 0.0
    both = scored & ~flat
    # each divided by its own norm first: a product of two tiny variances could underflow
    t_norm = np.sqrt(tt, where=both, out=np.ones_like(tt))
    p_norm = np.sqrt(np.sum(p_centred**2, axis=axis), where=both, out=np.ones_like(tt))
    unit = np.expand_dims(t_norm, axis), np.expand_dims(p_norm, axis)
    pcc[both] = np.clip(np.sum(t_centred / unit[0] * (p_centred / unit[1]), axis=axis), -1.0, 1.0)[both]

    r2 = np.full(scored.shape, np.nan)
    r2[scored] = 1.0 - np.sum((t - p) ** 2, axis=axis)[scored] / tt[scored]
    return pcc, r2


def _constant(
    axis: int, values: NDArray[np.float64], dtype: np.dtype[Any], seen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which lines along ``axis`` vary by no more than rounding; one entry or none doesn't vary."""
    high = np.max(values, axis=axis, keepdims=True, where=seen, initial=-np.inf)
    low = np.min(values, axis=axis, keepdims=True, where=seen, initial=np.inf)
    size = np.max(np.abs(values), axis=axis, keepdims=True, where=seen, initial=0.0)
    rounding = 4 * (np.finfo(dtype).eps if dtype.kind == "f" else 0.0)
    return high - low <= rounding * size


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN, NaN for nothing."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
