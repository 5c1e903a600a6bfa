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

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    return _scores(scored_entries(y_true, y_pred, mask, which))


def gene_scores(
    y_true: ArrayLike, y_pred: ArrayLike, *, mask: ArrayLike | None = None, which: Which = "all"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PCC and R2 of each gene, (genes,) float64, by the rules above; NaN where a gene is left out.

    Parameters and errors are those of :func:`score`.
    """
    return line_scores(0, scored_entries(y_true, y_pred, mask, which))


def score_slides(
    y_true: Mapping[str, ArrayLike],
    y_pred: Mapping[str, ArrayLike],
    *,
    mask: Mapping[str, ArrayLike] | None = None,
    which: Which = "all",
) -> list[dict[str, Any]]:
    """Score several slides: all spots pooled, each slide, and the mean of the slides.

    Pooled scores reward knowing the level of a slide, those of single slides do not: a predictor that gives each slide its
    true means scores high pooled, and 0 on every slide.

    Parameters
    ----------
    y_true, y_pred, mask
        Arrays of :func:`score` by slide; the prediction names the slides that are scored.
    which
        Score all entries or the measured ones.

    Returns
    -------
    list of dict
        Rows of :func:`score` with ``over``, ``slide`` and ``n_slides``: ``"pooled"``, then ``"slide_mean"`` (of each score
        over the slides that have it, all slides weighing the same; counts are sums), both with ``slide`` None,
        then one ``"slide"`` for each in sorted order.

    Raises
    ------
    InputError
        No slides, a slide without truth or mask, slides with other genes, or what :func:`score` refuses.
    """
    scored = scored_slides(y_true, y_pred, mask, which)
    each = {slide: _scores(found) for slide, found in scored.items()}
    pooled = _scores(pool(scored.values()))
    mean: dict[str, Any] = {}
    for key in pooled:
        values = [found[key] for found in each.values()]
        mean[key] = sum(values) if key.startswith("n_") else mean_of_scored(np.array(values))
    rows = [("pooled", None, pooled), ("slide_mean", None, mean), *(("slide", s, each[s]) for s in each)]
    return [
        {"over": over, "slide": slide, "n_slides": len(each) if slide is None else 1, **found}
        for over, slide, found in rows
    ]


class Scored(NamedTuple):
    """Checked arrays of one slide or several, (spots, genes).

    Attributes
    ----------
    truth, predicted
        float64, 0 where not scored.
    seen
        bool, True where scored.
    truth_dtype, predicted_dtype
        As given: they say how far values that differ by rounding lie apart.
    """

    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]
    seen: NDArray[np.bool_]
    truth_dtype: np.dtype[Any]
    predicted_dtype: np.dtype[Any]


def scored_entries(y_true: ArrayLike, y_pred: ArrayLike, mask: ArrayLike | None, which: Which) -> Scored:
    """Check the arrays of :func:`score` and return what is scored; errors are those of :func:`score`."""
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise InputError(f"truth has shape {truth.shape}, prediction {predicted.shape}: both must be (spots, genes)")
    if truth.size == 0:
        raise InputError(f"nothing to score: truth has shape {truth.shape}")
    seen = _seen(truth.shape, mask, which)
    return Scored(
        _values(truth, seen, "truth"), _values(predicted, seen, "prediction"), seen, truth.dtype, predicted.dtype
    )


def scored_slides(
    y_true: Mapping[str, ArrayLike],
    y_pred: Mapping[str, ArrayLike],
    mask: Mapping[str, ArrayLike] | None,
    which: Which,
) -> dict[str, Scored]:
    """Check the arrays of :func:`score_slides` and return what is scored of each slide, in sorted order."""
    if not y_pred:
        raise InputError("nothing to score: no slide has predictions")
    needed = {"truth": y_true} | ({"mask": mask} if which == "measured" and mask is not None else {})
    found = {}
    for slide in sorted(y_pred):
        for what, arrays in needed.items():
            if slide not in arrays:
                raise InputError(f"slide {slide} has predictions but no {what}: give it, or leave the slide out")
        seen = needed["mask"][slide] if "mask" in needed else None
        found[slide] = scored_entries(y_true[slide], y_pred[slide], seen, which)
    if len(genes := {f.truth.shape[1] for f in found.values()}) > 1:
        raise InputError(f"the slides have {sorted(genes)} genes: give all of them the same panel")
    return found


def pool(scored: Iterable[Scored]) -> Scored:
    """Return several slides as one."""
    truth, predicted, seen, truth_dtypes, predicted_dtypes = zip(*scored, strict=True)
    return Scored(
        np.concatenate(truth),
        np.concatenate(predicted),
        np.concatenate(seen),
        np.result_type(*truth_dtypes),
        np.result_type(*predicted_dtypes),
    )


def _scores(scored: Scored) -> dict[str, Any]:
    difference = scored.truth - scored.predicted
    entries = int(scored.seen.sum())
    gene, spot = line_scores(0, scored), line_scores(1, scored)
    return {
        "pcc_gene": mean_of_scored(gene[0]),
        "pcc_patch": mean_of_scored(spot[0]),
        "mse": float(np.sum(difference**2) / entries) if entries else float("nan"),
        "mae": float(np.sum(np.abs(difference)) / entries) if entries else float("nan"),
        "r2_gene": mean_of_scored(gene[1]),
        "r2_patch": mean_of_scored(spot[1]),
        "n_spots": len(scored.truth),
        "n_entries": entries,
        "n_genes_scored": int((~np.isnan(gene[0])).sum()),
        "n_spots_scored": int((~np.isnan(spot[0])).sum()),
    }


def _seen(shape: tuple[int, ...], mask: ArrayLike | None, which: str) -> NDArray[np.bool_]:
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


def line_scores(axis: int, scored: Scored) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PCC and R2 of each gene (axis 0) or each spot (axis 1); NaN where the rule leaves it out."""
    t, p, seen = scored.truth, scored.predicted, scored.seen
    count = seen.sum(axis=axis, keepdims=True)
    kept = ~constant_lines(axis, t, scored.truth_dtype, seen)
    flat = constant_lines(axis, p, scored.predicted_dtype, seen)
    t_centred = np.where(seen, t - t.sum(axis=axis, keepdims=True) / np.maximum(count, 1), 0.0)
    p_centred = np.where(seen, p - p.sum(axis=axis, keepdims=True) / np.maximum(count, 1), 0.0)
    tt = np.sum(t_centred**2, axis=axis)
    kept &= tt > 0  # squares can underflow

    pcc = np.full(kept.shape, np.nan)
    pcc[kept & flat] = 0.0
    both = kept & ~flat
    # each divided by its own norm first: a product of two tiny variances could underflow
    t_norm = np.sqrt(tt, where=both, out=np.ones_like(tt))
    p_norm = np.sqrt(np.sum(p_centred**2, axis=axis), where=both, out=np.ones_like(tt))
    unit = np.expand_dims(t_norm, axis), np.expand_dims(p_norm, axis)
    pcc[both] = np.clip(np.sum(t_centred / unit[0] * (p_centred / unit[1]), axis=axis), -1.0, 1.0)[both]

    r2 = np.full(kept.shape, np.nan)
    r2[kept] = 1.0 - np.sum((t - p) ** 2, axis=axis)[kept] / tt[kept]
    return pcc, r2


def constant_lines(
    axis: int, values: NDArray[np.float64], dtype: np.dtype[Any], seen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which lines along ``axis`` vary by no more than rounding; one entry or none doesn't vary."""
    high = np.max(values, axis=axis, keepdims=True, where=seen, initial=-np.inf)
    low = np.min(values, axis=axis, keepdims=True, where=seen, initial=np.inf)
    size = np.max(np.abs(values), axis=axis, keepdims=True, where=seen, initial=0.0)
    rounding = 4 * (np.finfo(dtype).eps if dtype.kind == "f" else 0.0)
    return (high - low <= rounding * size).squeeze(axis)


def mean_of_scored(values: NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN, NaN for nothing."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
