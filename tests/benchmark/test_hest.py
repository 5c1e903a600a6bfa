"""HEST's choice of genes against scanpy, its folds, and its score. All data is synthetic."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.benchmark.hest import gene_sums, leave_out, pick_genes, score_folds
from spared_fm.benchmark.metrics import score_slides
from spared_fm.errors import InputError

NAMES = [*(f"g{i:03}" for i in range(178)), "BLANK_1", "NegControl_7"][::-1]


def counts(seed: int, spots: int = 90) -> sp.csr_matrix:
    """Overdispersed counts; some genes are rare or absent, two are constant, many share a mean."""
    rng = np.random.default_rng(seed)
    mean = np.geomspace(0.02, 60, len(NAMES)) * rng.gamma(9, 1 / 9, len(NAMES))
    made = rng.poisson(mean * rng.gamma(2, 0.5, (spots, len(NAMES))))
    made[:, 20], made[:, 40], made[:, 60] = 0, 3, 1
    made[:, :2] = rng.poisson(rng.gamma(0.3, 60, (spots, 2)))  # controls, which would be picked
    return sp.csr_matrix(made.astype(np.float32))


def as_published(slides: list[sp.csr_matrix], k: int) -> list[str]:
    """The published steps, on dense tables."""
    tables = [pd.DataFrame(slide.toarray(), columns=NAMES) for slide in slides]
    common = set(NAMES)
    for table in tables:
        common &= set(table.columns[(table > 0).sum() >= np.ceil(0.1 * len(table))])
    kept = sorted(name for name in common if "BLANK" not in name and "Control" not in name)
    whole = ad.AnnData(pd.concat([table[kept] for table in tables], ignore_index=True).rename(index=str))
    sc.pp.log1p(whole)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(whole, n_top_genes=k)
    return list(whole.var_names[whole.var["highly_variable"]][:k])


@pytest.mark.parametrize("k", [5, 12, 50])
def test_genes_are_those_scanpy_picks(k: int):
    for seed in range(4):
        slides = [counts(10 * seed + i, spots) for i, spots in enumerate((90, 41, 65))]
        picked = pick_genes([gene_sums(slide) for slide in slides], NAMES, k)
        assert [NAMES[i] for i in picked] == as_published(slides, k)
        assert {20, 40, 60, 0, 1}.isdisjoint(picked.tolist())


def test_a_gene_must_be_found_on_a_tenth_of_every_slide():
    slides = [counts(i) for i in range(2)]
    rare = slides[1].toarray()
    gone = pick_genes([gene_sums(one) for one in slides], NAMES, 12)[0]
    rare[9:, gone] = 0
    rare[:9, gone] = 50  # on 9 of 90 spots: enough
    enough = pick_genes([gene_sums(slides[0]), gene_sums(sp.csr_matrix(rare))], NAMES, 12)
    rare[8, gone] = 0
    too_few = pick_genes([gene_sums(slides[0]), gene_sums(sp.csr_matrix(rare))], NAMES, 12)
    assert gone in enough
    assert gone not in too_few


def test_too_few_genes_are_said_in_one_line():
    with pytest.raises(
        InputError, match=r"takes 50 genes, but only \d+ of 180 vary and are found on 10% .* 1 slides"
    ) as e:
        pick_genes([gene_sums(counts(0)[:, :180].multiply(np.arange(180) < 45).tocsr())], NAMES)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="only 0 of 180"):
        pick_genes([gene_sums(sp.csr_matrix((7, 180)))], NAMES)


@given(st.lists(st.text(max_size=3), min_size=1, max_size=30), st.integers(1, 12), st.randoms(use_true_random=False))
def test_every_patient_is_held_out_once(labels, most, random):
    folds = leave_out(labels, most)
    assert sorted(patient for fold in folds for patient in fold) == sorted(set(labels))
    sizes = [len(fold) for fold in folds]
    assert len(folds) == min(most, len(set(labels)))
    assert max(sizes) - min(sizes) <= 1
    random.shuffle(labels)
    assert leave_out(labels, most) == folds


def predicted(seed: int = 0, slides: int = 3):
    rng = np.random.default_rng(seed)
    truth = {f"s{i}": rng.normal(i, 1, (20 + i, 4)) for i in range(slides)}
    return truth, {slide: values + rng.normal(size=values.shape) for slide, values in truth.items()}


def test_a_score_is_over_the_whole_test_split_then_genes_then_folds():
    folds = [predicted(seed, slides) for seed, slides in ((0, 3), (1, 1))]
    expected = []
    for truth, guess in folds:
        t, p = (np.concatenate(list(one.values())) for one in (truth, guess))
        expected.append([np.corrcoef(t[:, g], p[:, g])[0, 1] for g in range(4)])
    for exact in (True, False):
        found = score_folds(folds, as_published=exact)
        np.testing.assert_allclose(found.genes, expected, rtol=1e-12)
        np.testing.assert_allclose(found.folds, np.mean(expected, axis=1), rtol=1e-12)
        assert found.pcc_gene == pytest.approx(np.mean(expected), rel=1e-12)
    truth, guess = folds[0]
    assert found.folds[0] == pytest.approx(score_slides(truth, guess)[0]["pcc_gene"], rel=1e-12)
    alone = np.mean([score_folds([({s: truth[s]}, {s: guess[s]})], as_published=True).pcc_gene for s in truth])
    assert abs(alone - found.folds[0]) > 0.05  # not slide by slide


def test_absent_patches_are_left_out():
    truth, guess = predicted()
    holed = {slide: values.copy() for slide, values in guess.items()}
    holed["s0"][3] = np.nan
    holed["s2"][:] = np.nan
    kept = np.arange(20) != 3
    found = score_folds([(truth, holed)], as_published=True)
    expected = score_folds(
        [({"s0": truth["s0"][kept], "s1": truth["s1"]}, {"s0": guess["s0"][kept], "s1": guess["s1"]})],
        as_published=True,
    )
    np.testing.assert_array_equal(found.genes, expected.genes)
    del truth["s1"]
    with pytest.raises(InputError, match="slide s1 has predictions but no truth"):
        score_folds([(truth, holed)], as_published=True)
    with pytest.raises(InputError, match="no fold"):
        score_folds([], as_published=True)


@pytest.mark.parametrize("which", ["truth", "prediction"])
def test_a_constant_gene_spoils_the_published_score_only(which: str):
    folds = [predicted(0), predicted(1)]
    for values in folds[0][which == "prediction"].values():
        values[:, 2] = 0.7
    published, ours = (score_folds(folds, as_published=exact) for exact in (True, False))
    assert np.isnan([published.pcc_gene, published.folds[0], published.genes[0][2]]).all()
    assert published.folds[1] == ours.folds[1]
    rest = np.delete(ours.genes[0], 2)
    assert ours.folds[0] == pytest.approx(rest.mean() if which == "truth" else rest.sum() / 4)
