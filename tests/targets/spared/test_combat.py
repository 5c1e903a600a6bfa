from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.spared.combat import Combat, apply_combat, merge_moments, moments
from spared_fm.targets.spared.combat import fit_combat as fit_moments


def batches(seed: int = 0, sizes: tuple[int, ...] = (40, 25, 60)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    level, spread = rng.normal(5, 2, 30), rng.gamma(3, 0.4, 30)
    parts = [
        rng.normal(level + rng.normal(s, 0.5, 30), spread * rng.gamma(8, 0.15, 30), (n, 30))
        for s, n in enumerate(sizes)
    ]
    return np.vstack(parts), np.repeat([f"b{i}" for i in range(len(sizes))], sizes)


def fit_combat(values: np.ndarray, batch: np.ndarray) -> Combat:
    return fit_moments(moments(values, batch))


def by_the_paper(values: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Johnson, Li & Rabinovic 2007, section 3.2, gene by gene, iterated to the fixed point."""
    labels = np.unique(batch)
    share = {b: np.mean(batch == b) for b in labels}
    alpha = sum(share[b] * values[batch == b].mean(axis=0) for b in labels)
    residual = np.vstack([values[batch == b] - values[batch == b].mean(axis=0) for b in labels])
    sigma = np.sqrt((residual**2).sum(axis=0) / len(values))
    z = (values - alpha) / sigma
    out = np.empty_like(z)
    for b in labels:
        own = z[batch == b]
        n, hat, var = len(own), own.mean(axis=0), own.var(axis=0, ddof=1)
        bar, tau2 = hat.mean(), hat.var(ddof=1)
        v, s2 = var.mean(), var.var(ddof=1)
        shape, rate = (2 * s2 + v**2) / s2, (v * s2 + v**3) / s2
        for g in range(z.shape[1]):
            gamma, delta = hat[g], var[g]
            for _ in range(500):
                gamma = (n * tau2 * hat[g] + delta * bar) / (n * tau2 + delta)
                delta = (rate + ((own[:, g] - gamma) ** 2).sum() / 2) / (n / 2 + shape - 1)
            out[batch == b, g] = sigma[g] / np.sqrt(delta) * (own[:, g] - gamma) + alpha[g]
    return out


def test_it_is_the_published_estimator() -> None:
    values, batch = batches()
    np.testing.assert_allclose(
        apply_combat(values, batch, fit_combat(values, batch)), by_the_paper(values, batch), atol=1e-3
    )


def test_it_is_near_scanpys() -> None:
    import anndata as ad
    import scanpy as sc

    values, batch = batches(1)
    obs = pd.DataFrame({"batch": pd.Categorical(batch)}, index=[str(i) for i in range(len(batch))])
    theirs = sc.pp.combat(ad.AnnData(values.copy(), obs=obs), key="batch", inplace=False)
    # scanpy takes the priors' variances with the divisor n, not n - 1
    np.testing.assert_allclose(apply_combat(values, batch, fit_combat(values, batch)), theirs, atol=0.05)


def test_a_batch_effect_goes_away() -> None:
    values, batch = batches(2)
    done = apply_combat(values, batch, fit_combat(values, batch))

    def apart(x: np.ndarray) -> float:
        return float(np.std([x[batch == b].mean(axis=0) for b in np.unique(batch)], axis=0).mean())

    assert apart(done) < 0.1 * apart(values)


def test_unseen_batches_stay_as_they_are() -> None:
    values, batch = batches(3)
    seen = batch != "b2"
    fitted = fit_combat(values[seen], batch[seen])
    done = apply_combat(values, batch, fitted)
    np.testing.assert_array_equal(done[~seen], values[~seen])
    assert np.abs(done[seen] - values[seen]).max() > 0.1


def test_one_batch_and_a_constant_gene_are_left_alone() -> None:
    values, batch = batches(4)
    one = np.full(len(batch), "x")
    np.testing.assert_allclose(apply_combat(values, one, fit_combat(values, one)), values, atol=1e-12)
    values[:, 3] = 2.0
    done = apply_combat(values, batch, fit_combat(values, batch))
    assert np.isfinite(done).all()
    np.testing.assert_allclose(done[:, 3], 2.0)


def test_a_batch_of_one_spot_is_refused() -> None:
    values, batch = batches(5, (20, 1))
    with pytest.raises(InputError, match="b1 has one spot"):
        fit_combat(values, batch)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values, batch = batches(6)
    values[:, 0] += 1e6  # sums of squares would cancel
    whole = moments(values, batch)
    cuts = [slice(0, 1), slice(1, 60), slice(60, 60), slice(60, None)]
    merged = merge_moments([moments(values[cut], batch[cut]) for cut in cuts])
    assert merged.batches.equals(whole.batches)
    np.testing.assert_array_equal(merged.n, whole.n)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9)
