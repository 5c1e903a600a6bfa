"""Losses over a batch of spots × genes, with a weight of 0 or 1 per entry."""

from __future__ import annotations

import torch

EPS = 1e-8


def squared(found: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the mean squared error over the entries with weight; all tensors are (spots, genes), no weight is 1."""
    error = (found - wanted) ** 2
    return error.mean() if weight is None else (error * weight).sum() / weight.sum().clamp_min(1.0)


def pearson(found: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over genes of Pearson's correlation over spots (0 for a constant gene)."""
    share = torch.ones_like(found) if weight is None else weight
    count = share.sum(dim=0).clamp_min(1.0)
    a = (found - (found * share).sum(dim=0) / count) * share
    b = (wanted - (wanted * share).sum(dim=0) / count) * share
    norm = ((a**2).sum(dim=0) * (b**2).sum(dim=0) + EPS).sqrt()
    return ((a * b).sum(dim=0) / norm).mean()


def negative_binomial(
    log_mean: torch.Tensor, log_dispersion: torch.Tensor, counts: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    """Return the mean negative log-likelihood of counts.

    Parameters
    ----------
    log_mean, counts
        (spots, genes).
    log_dispersion
        (genes,) logarithm of r; the variance is mean + mean² ÷ r.
    weight
        (spots, genes) of 0 and 1, or None.
    """
    r = log_dispersion.exp()
    both = torch.logaddexp(log_dispersion.expand_as(log_mean), log_mean)
    likelihood = (
        torch.lgamma(counts + r)
        - torch.lgamma(r)
        - torch.lgamma(counts + 1.0)
        + r * (log_dispersion - both)
        + counts * (log_mean - both)
    )
    return -likelihood.mean() if weight is None else -(likelihood * weight).sum() / weight.sum().clamp_min(1.0)
