"""SpaRED's six metrics and their sum, with the edge rules of package ``spared`` 2.2.1 (compat).

For tables that must compare with SpaRED's. Everything else uses :mod:`spared_fm.benchmark.metrics`, whose rules leave no
score undefined for want of one gene. The rules here, M being the entries where the mask is True:

* MSE and MAE are means over M.
* PCC-Gene is the Pearson correlation of each gene over its M entries, averaged over genes; PCC-Patch is the same of each
  spot over its genes. A gene (spot) without M entries is left out; one whose M entries are constant, in the truth or the
  prediction, or that has a single one, counts as 0. Norms below 1e-8 are taken as 1e-8.
* If any gene is predicted constant over all spots, masked or not, PCC-Gene is NaN; if any spot is predicted constant over
  all genes, PCC-Patch is NaN. One spot (one gene) alone is constant.
* R2-Gene and R2-Patch are 1 - SSres / SStot over M with the mean over M, averaged; genes (spots) with no or one entry are
  left out; a constant truth gives -inf (NaN if predicted exactly), and so does then the average.
* Global = PCC-Gene + PCC-Patch + R2-Gene + R2-Patch - MSE - MAE.
* A gene (spot) with a NaN among the M entries of its truth is left out of PCC and R2. A NaN in the prediction leaves it out of
  PCC only, and makes R2, MSE and MAE NaN.

Source: definitions of arXiv 2407.13027 and 2505.02980 as computed by the released functions, to which values on 200 random
cases are compared in the tests. The released functions work in the dtype given, these in float64: for a float32 truth that
is constant without its mean being exact, the released R2 may be large and negative where the rule says -inf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SMALLEST_NORM = 1e-8
"""Default ``eps`` of torch's cosine similarity, with which SpaRED correlates."""


def get_metrics(gt_mat: ArrayLike, pred_mat: ArrayLike, mask: ArrayLike, detailed: bool = False) -> dict[str, Any]:
    """Score predictions as SpaRED does: all spots pooled, measured entries only.

    Parameters
    ----------
    gt_mat, pred_mat
        Truth and prediction, (spots, genes). Arrays, or torch tensors on the CPU.
    mask
        (spots, genes) bool, True where an entry is scored.
    detailed
        Add the scores of single genes and spots.

    Returns
    -------
    dict
        ``PCC-Gene, PCC-Patch, R2-Gene, R2-Patch, MSE, MAE, Global``. With ``detailed`` also lists of floats:
        ``detailed_PCC-Gene, detailed_PCC-Patch, detailed_R2-Gene, detailed_R2-Patch`` of the genes or spots that
        entered the average (a lone NaN where PCC is NaN), ``detailed_mse_gene, detailed_mae_gene, detailed_error_gene`` of
        every gene (mean error, NaN for a gene without entries), and ``detailed_errors`` of every scored entry, row by row.

    Raises
    ------
    InputError
        Shapes that differ or are not 2-d, no spots or no genes, or a mask that is not bool.
    """
    truth, predicted, seen = np.asarray(gt_mat), np.asarray(pred_mat), np.asarray(mask)
    if truth.ndim != 2 or not truth.size:
        raise InputError(f"the truth has shape {truth.shape}: give (spots, genes), one of each at least")
    if predicted.shape != truth.shape or seen.shape != truth.shape:
        raise InputError(
            f"truth has shape {truth.shape}, prediction {predicted.shape}, mask {seen.shape}: make them one"
        )
    if seen.dtype != bool:
        raise InputError(f"the mask has dtype {seen.dtype}: give bool, True where an entry is scored")
    t, p = truth.astype(np.float64), predicted.astype(np.float64)

    with np.errstate(invalid="ignore", divide="ignore"):  # the rules are about what these give
        pcc_gene, pcc_patch = _correlations(t, p, seen), _correlations(t.T, p.T, seen.T)
        r2_gene, r2_patch = _determinations(t, p, seen), _determinations(t.T, p.T, seen.T)
        error = np.where(seen, p - t, np.nan)
        found = {
            "PCC-Gene": _mean(pcc_gene[~np.isnan(pcc_gene)]) if pcc_gene is not None else np.nan,
            "PCC-Patch": _mean(pcc_patch[~np.isnan(pcc_patch)]) if pcc_patch is not None else np.nan,
            "R2-Gene": _mean(r2_gene),
            "R2-Patch": _mean(r2_patch),
            "MSE": _mean(error[seen] ** 2),
            "MAE": _mean(np.abs(error[seen])),
        }
        found["Global"] = sum(found[k] for k in list(found)[:4]) - found["MSE"] - found["MAE"]
    if not detailed:
        return found
    return found | {
        "detailed_PCC-Gene": np.nan if pcc_gene is None else pcc_gene.tolist(),
        "detailed_PCC-Patch": np.nan if pcc_patch is None else pcc_patch.tolist(),
        "detailed_R2-Gene": r2_gene.tolist(),
        "detailed_R2-Patch": r2_patch.tolist(),
        "detailed_mse_gene": [_mean(column[~np.isnan(column)]) for column in (error**2).T],
        "detailed_mae_gene": [_mean(column[~np.isnan(column)]) for column in np.abs(error).T],
        "detailed_error_gene": [_mean(column[~np.isnan(column)]) for column in error.T],
        "detailed_errors": error[seen].tolist(),
    }


def _correlations(
    t: NDArray[np.float64], p: NDArray[np.float64], seen: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    """Return the correlation of each column that has any, None if any column is predicted constant."""
    if (p == p[:1]).all(axis=0).any():
        return None
    mean, t_centred = _centred(t, seen)
    unit = [c / np.maximum(np.sqrt(np.sum(c**2, axis=0)), _SMALLEST_NORM) for c in (t_centred, _centred(p, seen)[1])]
    return np.sum(unit[0] * unit[1], axis=0)[~np.isnan(mean)]


def _determinations(t: NDArray[np.float64], p: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return R2 of each column that has two or more entries."""
    mean, centred = _centred(t, seen)
    residual = np.sum(np.where(seen, t - p, 0.0) ** 2, axis=0)
    return (1.0 - residual / np.sum(centred**2, axis=0))[~np.isnan(mean) & (seen.sum(axis=0) != 1)]


def _centred(values: NDArray[np.float64], seen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of each column over its seen entries (NaN for none), and seen entries less it, 0 elsewhere."""
    mean = np.sum(np.where(seen, values, 0.0), axis=0) / seen.sum(axis=0)
    high = np.max(values, axis=0, where=seen, initial=-np.inf)
    low = np.min(values, axis=0, where=seen, initial=np.inf)
    # a constant column is 0 when centred, also where its mean is off by rounding
    return mean, np.where(seen & (high != low), values - mean, 0.0)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean, NaN included; NaN for nothing."""
    return float(values.mean()) if values.size else float("nan")
