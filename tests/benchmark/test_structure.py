"""Structural metrics against plain loops, and what they are for: flat, scrambled and too smooth predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from spared_fm.benchmark.structure import gene_structure, structure
from spared_fm.errors import InputError

KEYS = {"variance_ratio", "gene_correlation", "moran_recovered", "moran_true", "moran_predicted", "n_genes_scored"}


def slide(seed, side=12, genes=6):
    """Synthetic slide on a square grid: smooth genes that share two patterns, a noisy prediction, a mask."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    around = cKDTree(xy).query(xy, 5)[1][:, 1:]
    patterns = np.stack([np.sin(xy[:, 0] / 2 + rng.random()), np.cos(xy[:, 1] / 2 + rng.random())], axis=1)
    truth = patterns @ rng.normal(size=(2, genes)) + rng.normal(size=(len(xy), genes)) * rng.uniform(0.1, 2, genes)
    predicted = 0.6 * truth + rng.normal(size=truth.shape) * 0.5
    return truth, predicted, around, rng.random(truth.shape) < 0.7


def moran(values, around, seen):
    """Moran's I of one gene, written as its definition."""
    z = np.where(seen, values - values[seen].mean(), 0.0)
    above = weights = 0.0
    for i in np.flatnonzero(seen):
        near = [j for j in around[i] if j >= 0 and seen[j]]
        for j in near:
            above += z[i] * z[j] / len(near)
            weights += 1 / len(near)
    return seen.sum() / weights * above / (z[seen] ** 2).sum()


@pytest.mark.parametrize("which", ["all", "measured"])
def test_genes_against_definitions(which):
    t, p, around, mask = slide(0)
    around[3, 2:] = -1
    around[7] = -1
    seen = mask if which == "measured" else np.ones_like(mask)
    found = gene_structure(t, p, around, mask=mask, which=which)
    pairs = {"true": np.full((6, 6), np.nan), "predicted": np.full((6, 6), np.nan)}
    for i in range(6):
        s = seen[:, i]
        assert found["variance_ratio"][i] == pytest.approx(p[s, i].var() / t[s, i].var(), rel=1e-9)
        assert found["moran_true"][i] == pytest.approx(moran(t[:, i], around, s), abs=1e-9)
        assert found["moran_predicted"][i] == pytest.approx(moran(p[:, i], around, s), abs=1e-9)
        for j in set(range(6)) - {i}:
            both = seen[:, i] & seen[:, j]
            pairs["true"][i, j] = np.corrcoef(t[both, i], t[both, j])[0, 1]
            pairs["predicted"][i, j] = np.corrcoef(p[both, i], p[both, j])[0, 1]
    for i in range(6):
        others = np.arange(6) != i
        kept = np.corrcoef(pairs["true"][i, others], pairs["predicted"][i, others])[0, 1]
        assert found["gene_correlation"][i] == pytest.approx(kept, abs=1e-9)
    row = structure({"a": t}, {"a": p}, {"a": around}, mask={"a": mask}, which=which)[2]
    upper = np.triu_indices(6, 1)
    kept = np.corrcoef(pairs["true"][upper], pairs["predicted"][upper])[0, 1]
    assert row["gene_correlation"] == pytest.approx(kept, abs=1e-9)
    assert row["variance_ratio"] == pytest.approx(np.median(found["variance_ratio"]))
    assert row["moran_recovered"] == pytest.approx(np.corrcoef(found["moran_true"], found["moran_predicted"])[0, 1])


def test_rows_pooled_and_per_slide():
    (ta, pa, na, _), (tb, pb, nb, _) = slide(1), slide(2, side=10)
    pb[:, 0] = 1.0
    tb[:, 1] = 2.0
    pooled, mean, *each = structure({"a": ta, "b": tb}, {"b": pb, "a": pa}, {"a": na, "b": nb})
    assert [(r["over"], r["slide"]) for r in (pooled, mean, *each)] == [
        ("pooled", None),
        ("slide_mean", None),
        ("slide", "a"),
        ("slide", "b"),
    ]
    assert all(set(r) == {"over", "slide"} | KEYS for r in (pooled, mean, *each))
    for key in KEYS - {"n_genes_scored"}:
        assert mean[key] == pytest.approx((each[0][key] + each[1][key]) / 2)
    a, b = gene_structure(ta, pa, na), gene_structure(tb, pb, nb)
    own = (
        np.nanmean([a["moran_true"], b["moran_true"]], axis=0),
        np.nanmean([a["moran_predicted"], b["moran_predicted"]], 0),
    )
    assert pooled["moran_recovered"] == pytest.approx(np.corrcoef(*own)[0, 1])
    joined = gene_structure(np.concatenate([ta, tb]), np.concatenate([pa, pb]))
    assert pooled["variance_ratio"] == pytest.approx(np.median(joined["variance_ratio"]))
    assert (pooled["n_genes_scored"], each[1]["n_genes_scored"]) == (6, 5)


def test_constant_genes():
    t, p, around, _ = slide(3)
    t[:, 0], p[:, 1] = 4.2, -0.3
    found = gene_structure(t, p, around)
    assert all(np.isnan(values[0]) for values in found.values())
    assert found["variance_ratio"][1] == 0
    assert found["moran_predicted"][1] == 0
    assert found["moran_true"][1] != 0
    assert math.isnan(found["gene_correlation"][1])  # zeros, which do not vary


def test_genes_never_measured_together_are_no_pair():
    t, p, _, _ = slide(9, genes=4)
    mask = np.ones(t.shape, bool)
    mask[:50, 0] = mask[50:, 1] = False
    measured = structure({"a": t}, {"a": p}, mask={"a": mask}, which="measured")[0]
    corr = [np.corrcoef(x, rowvar=False) for x in (t, p)]
    for c, x in zip(corr, (t, p), strict=True):
        for i, rows in ((0, slice(50, None)), (1, slice(0, 50))):
            c[i] = c[:, i] = np.corrcoef(x[rows], rowvar=False)[i]
    kept = [i for i in zip(*np.triu_indices(4, 1), strict=True) if i != (0, 1)]
    expected = np.corrcoef(*([c[i] for i in kept] for c in corr))[0, 1]
    assert measured["gene_correlation"] == pytest.approx(expected, abs=1e-9)


def test_truth_keeps_everything_and_scale_and_shift_only_change_the_spread():
    t, p, around, _ = slide(4)
    row = structure({"a": t}, {"a": t}, {"a": around})[0]
    assert (row["variance_ratio"], row["gene_correlation"], row["moran_recovered"]) == pytest.approx((1, 1, 1))
    base, moved = (structure({"a": t}, {"a": x}, {"a": around})[0] for x in (p, p * 0.01 + 50))
    assert moved["variance_ratio"] == pytest.approx(base["variance_ratio"] * 1e-4)
    for key in KEYS - {"variance_ratio"}:
        assert moved[key] == pytest.approx(base[key], abs=1e-9)


def test_scrambled_flat_and_smoothed_predictions_are_told():
    t, _, around, _ = slide(5, side=20)
    rng = np.random.default_rng(5)
    rows = {
        "truth": t,
        "genes_apart": np.stack([rng.permutation(column) for column in t.T], axis=1),
        "spots_apart": rng.permutation(t),
        "smooth": (t + t[around].sum(axis=1)) / 5,
    }
    rows = {name: structure({"a": t}, {"a": p}, {"a": around})[0] for name, p in rows.items()}
    assert rows["genes_apart"]["gene_correlation"] < 0.5 < rows["spots_apart"]["gene_correlation"]
    assert rows["spots_apart"]["moran_predicted"] < 0.1 < rows["truth"]["moran_true"]
    assert rows["smooth"]["moran_predicted"] > rows["truth"]["moran_true"] + 0.1
    assert rows["smooth"]["variance_ratio"] < 0.9


def test_without_neighbours_and_with_few_genes():
    t, p, _, mask = slide(6, genes=2)
    row = structure({"a": t}, {"a": p}, mask={"a": mask}, which="measured")[0]
    assert row["variance_ratio"] > 0
    assert all(math.isnan(row[key]) for key in KEYS - {"variance_ratio", "n_genes_scored"})


def test_tiny_values():
    t, p, around, _ = slide(7)
    base, tiny = gene_structure(t, p, around), gene_structure(t * 1e-150, p * 1e-150, around)
    for key in ("gene_correlation", "moran_true", "moran_predicted"):
        np.testing.assert_allclose(tiny[key], base[key], atol=1e-9)


@pytest.mark.parametrize(
    ("around", "words"),
    [
        (np.zeros((3, 2), int), "of slide a have shape"),
        (np.zeros((144, 2)), "give integers"),
        (np.full((144, 2), 144), "rows are 0 to 143"),
        (np.full((144, 2), -2), "name rows -2"),
    ],
)
def test_bad_neighbours(around, words):
    t, p, _, _ = slide(8)
    with pytest.raises(InputError, match=words):
        structure({"a": t}, {"a": p}, {"a": around})
    with pytest.raises(InputError, match="slide a has predictions but no neighbours"):
        structure({"a": t}, {"a": p}, {})
