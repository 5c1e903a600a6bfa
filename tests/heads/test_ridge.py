"""Ridge from sufficient statistics against scikit-learn and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline

from spared_fm.errors import InputError
from spared_fm.heads.linear import pick
from spared_fm.heads.ridge import PCARidge, Ridge, ridge_path

ALPHAS = [0.1, 1.0, 10.0, 100.0, 1e4]


def study(seed=0, slides=(40, 30, 50), d=8, genes=6, offset=5.0, noise=1.0, dtype=np.float64):
    """Slides with their own offset and scale of the features, and a linear truth."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(d, genes))
    X, y, groups = [], [], []
    for s, n in enumerate(slides):
        z = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
        y.append(z @ w + noise * rng.normal(size=(n, genes)) + rng.normal(size=genes))
        X.append(z * rng.uniform(0.5, 2, d) + offset * rng.normal(size=d))
        groups += [f"slide{s}"] * n
    return np.concatenate(X).astype(dtype), np.concatenate(y), np.array(groups)


def standardised(X, groups, how, like=None):
    """Standardise explicitly: by each group's own rows, or by the rows ``like``."""
    X = X.astype(np.float64)
    out = np.empty_like(X)
    for g in np.unique(groups):
        rows = groups == g
        source = X[rows] if how == "slide" else X if like is None else like
        sd = source.std(axis=0)
        sd[sd < 1e-12] = np.inf
        mean = source.mean(axis=0)
        out[rows] = X[rows] if how == "none" else (X[rows] - mean) / sd
    return out


@pytest.mark.parametrize("how", ["slide", "train", "none"])
@pytest.mark.parametrize("alpha", [0.01, 3.0, 1e3])
def test_same_solution_as_sklearn(how, alpha):
    X, y, groups = study()
    Xt, _, gt = study(seed=9)
    ours = Ridge([alpha], standardize=how).fit(X, y, groups=groups)
    theirs = SklearnRidge(alpha).fit(standardised(X, groups, how), y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_.T, atol=1e-6, rtol=1e-6)
    like = None if how == "slide" else X.astype(np.float64)
    expected = theirs.predict(standardised(Xt, gt, how, like))
    found = ours.predict(Xt, groups=gt)
    np.testing.assert_allclose(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("how", ["slide", "train", "none"])
def test_leave_one_slide_out_matches_the_naive_loop(how):
    X, y, groups = study(noise=3.0)
    expected = np.zeros((len(ALPHAS), y.shape[1]))
    for held in np.unique(groups):
        out = groups == held
        Z = standardised(X[~out], groups[~out], how)
        Zh = standardised(X[out], groups[out], how, None if how == "slide" else X[~out])
        for i, alpha in enumerate(ALPHAS):
            model = SklearnRidge(alpha, solver="svd").fit(Z, y[~out])
            expected[i] += ((model.predict(Zh) - y[out]) ** 2).sum(axis=0)
    expected /= len(y)
    ours = Ridge(ALPHAS, alpha_per="gene", standardize=how).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.cv_error_, expected, rtol=1e-8)
    np.testing.assert_array_equal(ours.alpha_, np.array(ALPHAS)[expected.argmin(axis=0)])
    panel = Ridge(ALPHAS, alpha_per="all", standardize=how).fit(X, y, groups=groups)
    assert set(panel.alpha_) == {ALPHAS[(expected / y.var(axis=0)).mean(axis=1).argmin()]}


def test_gcv_matches_the_hat_matrix():
    X, y, _ = study(slides=(45,), d=6, noise=2.0)
    Z = standardised(X, np.zeros(45), "slide")
    n = len(Z)
    expected = []
    for alpha in ALPHAS:
        hat = Z @ np.linalg.solve(Z.T @ Z + alpha * np.eye(6), Z.T) + 1 / n
        sse = ((y - hat @ y) ** 2).sum(axis=0)
        expected.append(n * sse / (n - np.trace(hat)) ** 2)
    ours = Ridge(ALPHAS, alpha_per="gene").fit(X, y)
    np.testing.assert_allclose(ours.cv_error_, expected, rtol=1e-9)
    np.testing.assert_array_equal(ours.alpha_, np.array(ALPHAS)[np.argmin(expected, axis=0)])


def test_gcv_picks_as_ridgecv_does():
    X, y, _ = study(seed=4, slides=(600,), d=8, genes=12, noise=6.0)
    alphas = np.logspace(-2, 4, 4)
    theirs = RidgeCV(alphas, alpha_per_target=True).fit(standardised(X, np.zeros(600), "slide"), y)
    np.testing.assert_array_equal(Ridge(alphas, alpha_per="gene").fit(X, y).alpha_, theirs.alpha_)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 70), st.sampled_from(["slide", "train", "none"]))
def test_order_blocks_and_names_do_not_matter(seed, block_rows, how):
    X, y, groups = study(seed=seed, slides=(12, 20), d=5, genes=3)
    whole = Ridge(ALPHAS, standardize=how).fit(X, y, groups=groups)
    order = np.random.default_rng(seed).permutation(len(X))
    names = np.where(groups == "slide0", "z", "a")
    other = Ridge(ALPHAS, standardize=how, block_rows=block_rows).fit(X[order], y[order], groups=names[order])
    np.testing.assert_allclose(other.cv_error_, whole.cv_error_, rtol=1e-9)
    np.testing.assert_array_equal(other.alpha_, whole.alpha_)
    np.testing.assert_allclose(other.coef_, whole.coef_, rtol=1e-7, atol=1e-9)
    a, b = whole.predict(X, groups=groups), other.predict(X[order], groups=names[order])
    np.testing.assert_allclose(b, a[order], rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_affine_changes_of_a_slide_do_not_matter_when_standardised_by_slide(seed, scale, shift):
    X, y, groups = study(seed=seed, slides=(12, 20), d=5, genes=3)
    moved = np.where((groups == "slide1")[:, None], X * scale + shift, X)
    a = Ridge(ALPHAS).fit(X, y, groups=groups)
    b = Ridge(ALPHAS).fit(moved, y, groups=groups)
    np.testing.assert_allclose(b.predict(moved, groups=groups), a.predict(X, groups=groups), rtol=1e-4, atol=1e-4)


def test_stream_is_the_same_path_and_takes_row_labels():
    X, y, groups = study()
    whole = Ridge(ALPHAS).fit(X, y, groups=groups)
    by_slide = Ridge(ALPHAS).fit_stream((X[groups == g], y[groups == g], g) for g in np.unique(groups))
    by_rows = Ridge(ALPHAS).fit_stream([(X[:33], y[:33], groups[:33]), (X[33:], y[33:], groups[33:])])
    for other in (by_slide, by_rows):
        np.testing.assert_allclose(other.coef_, whole.coef_, rtol=1e-9, atol=1e-12)


def test_memory_map_of_float16(tmp_path):
    X, y, groups = study(offset=100.0, dtype=np.float16)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    a = Ridge(ALPHAS, block_rows=7).fit(mapped, y, groups=groups)
    b = Ridge(ALPHAS).fit(X.astype(np.float64), y, groups=groups)
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=1e-8, atol=1e-10)


def test_large_offset_keeps_its_digits():
    X, y, groups = study(offset=0.0)
    near = Ridge(ALPHAS, standardize="train").fit(X, y, groups=groups)
    far = Ridge(ALPHAS, standardize="train").fit(X + 1e6, y, groups=groups)
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", ["slide", "train", "none"])
def test_constant_features_count_as_zero(how):
    X, y, groups = study()
    constant = np.full((len(X), 1), 0.1)
    ours = Ridge(ALPHAS, standardize=how).fit(np.hstack([X, constant]), y, groups=groups)
    bare = Ridge(ALPHAS, standardize=how).fit(X, y, groups=groups)
    assert (ours.coef_[-1] == 0).all()
    np.testing.assert_allclose(ours.coef_[:-1], bare.coef_, rtol=1e-8, atol=1e-10)
    # constant in every slide but one: no noise from the subtraction in the fold that leaves this one out
    late = np.where((groups == "slide2")[:, None], X[:, :1], 7.0)
    assert np.isfinite(
        Ridge(ALPHAS, standardize=how).fit(np.hstack([X, late]), y, groups=groups).predict(np.hstack([X, late]))
    ).all()


@pytest.mark.parametrize("how", ["slide", "train"])
def test_constant_up_to_rounding_is_not_blown_up(how):
    X, y, groups = study()
    noise = 0.1 * (1 + 1e-16 * np.arange(len(X)))[:, None]
    assert noise.std() > 0
    head = Ridge(ALPHAS, standardize=how).fit(np.hstack([X, noise]), y, groups=groups)
    assert (head.coef_[-1] == 0).all()
    head.coef_[-1] = 1.0  # what the noise would weigh in a prediction
    found = head.predict(np.hstack([X, noise]), groups=groups)
    bare = Ridge(ALPHAS, standardize=how).fit(X, y, groups=groups)
    np.testing.assert_allclose(found, bare.predict(X, groups=groups), rtol=1e-5, atol=1e-5)


def test_one_alpha_for_the_panel_weighs_genes_by_their_variance():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(90, 8))
    y = X @ rng.normal(size=(8, 6)) + 0.1 * rng.normal(size=(90, 6))
    y[:, 0] = 1e3 * rng.normal(size=90)  # loud noise must not decide for the others
    head = Ridge(ALPHAS, alpha_per="all").fit(X, y, groups=np.arange(90) % 3)
    share = (head.cv_error_ / y.var(axis=0)).mean(axis=1)
    assert share.argmin() != head.cv_error_.mean(axis=1).argmin()
    assert set(head.alpha_) == {ALPHAS[share.argmin()]}


def test_order_of_slides_does_not_change_a_bit():
    X, y, groups = study(slides=(40, 30, 50, 20, 10))
    blocks = [(X[groups == g], y[groups == g], g) for g in np.unique(groups)]
    a, b = Ridge(ALPHAS).fit_stream(blocks), Ridge(ALPHAS).fit_stream(blocks[::-1])
    np.testing.assert_array_equal(a.coef_, b.coef_)
    np.testing.assert_array_equal(a.cv_error_, b.cv_error_)


@pytest.mark.parametrize("seed", range(6))
def test_fold_without_a_feature_matches_the_naive_loop(seed):
    X, y, groups = study(seed=seed)
    X[groups != "slide2", 0] = 0.7
    X[groups == "slide2", 0] *= 1000
    ours = Ridge([1e-3, 1.0], standardize="train", alpha_per="gene").fit(X, y, groups=groups)
    expected = np.zeros((2, y.shape[1]))
    for held in np.unique(groups):
        out = groups == held
        Z, Zh = (
            standardised(X[~out], groups[~out], "train"),
            standardised(X[out], groups[out], "train", X[~out]),
        )
        for i, alpha in enumerate([1e-3, 1.0]):
            expected[i] += ((SklearnRidge(alpha).fit(Z, y[~out]).predict(Zh) - y[out]) ** 2).sum(axis=0)
    np.testing.assert_allclose(ours.cv_error_, expected / len(y), rtol=1e-7)


@pytest.mark.parametrize("slides", [(1,), (1, 1), (1, 30), (3, 4)])
@pytest.mark.parametrize("how", ["slide", "train", "none"])
@pytest.mark.parametrize("per", ["gene", "all"])
def test_few_spots_and_more_features_than_spots(slides, how, per):
    X, y, groups = study(slides=slides, d=20)
    head = Ridge(standardize=how, alpha_per=per).fit(X, y, groups=groups)
    assert np.isfinite(head.predict(X, groups=groups)).all()
    assert np.isfinite(head.predict(X[:1])).all()


def test_one_spot_gives_its_own_targets():
    X, y, _ = study(slides=(1,))
    np.testing.assert_allclose(Ridge().fit(X, y).predict(X), y, rtol=1e-6)


def test_one_feature_collinear_features_and_constant_genes():
    X, y, groups = study(d=1)
    y[:, 0] = 3.0
    head = Ridge(ALPHAS).fit(np.hstack([X, X, 2 * X]), y, groups=groups)
    np.testing.assert_allclose(head.coef_[0], head.coef_[1], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(head.predict(np.hstack([X, X, 2 * X]), groups=groups)[:, 0], 3.0, rtol=1e-6)
    assert np.isfinite(Ridge(ALPHAS).fit(X, y, groups=groups).coef_).all()


def test_noise_is_shrunk_and_signal_is_not():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 40))
    y = np.stack([X[:, 0] * 3, rng.normal(size=300)], axis=1)
    head = Ridge(alpha_per="gene").fit(X, y, groups=np.arange(300) % 3)
    assert head.alpha_[0] <= 1.0
    assert head.alpha_[1] >= 1e3


def test_ties_go_to_the_larger_alpha():
    error = np.array([[1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    assert pick(error, np.array([1.0, 1.0, 0.0]), per_gene=True).tolist() == [2, 1, 2]
    assert pick(error, np.array([1.0, 1.0, 0.0]), per_gene=False).tolist() == [1, 1, 1]


def test_path_is_sklearn_for_every_alpha():
    X, y, _ = study(slides=(60,))
    for alpha, coef, intercept in ridge_path(X, y, ALPHAS, block_rows=13):
        model = SklearnRidge(alpha).fit(X, y)
        np.testing.assert_allclose(coef, model.coef_.T, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(intercept, model.intercept_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X, y, g: (X * np.nan, y, g), "features hold NaN"),
        (lambda X, y, g: (np.where(X[5, 2] == X, np.inf, X), y, g), "features hold NaN"),
        (lambda X, y, g: (X, np.where(y == y[3, 1], np.nan, y), g), "targets hold NaN"),
        (lambda X, y, g: (X[:-1], y, g), "rows of features"),
        (lambda X, y, g: (X, y, g[:-1]), "slide labels"),
        (lambda X, y, g: (X[0], y, g), "Give a"),
        (lambda X, y, g: (X, y[:, :, None], g), "targets have shape"),
        (lambda X, y, g: (X, y, np.stack([g, np.arange(len(g)).astype(str)], 1)), "more than one patient"),
        (lambda X, y, g: (X.astype(str), y, g), "dtype"),
        (lambda X, y, g: (X[:0], y[:0], g[:0]), "no training spots"),
        (lambda X, y, g: (X[:, :0], y, g), "0 feature"),
    ],
)
def test_bad_arrays(change, words):
    X, y, groups = change(*study())
    with pytest.raises(InputError, match=words):
        Ridge().fit(X, y, groups=groups)


@pytest.mark.parametrize(
    "params",
    [
        {"alphas": [0.0, 1.0]},
        {"alphas": []},
        {"alphas": [np.nan]},
        {"alpha_per": "spot"},
        {"cv": "spots"},
        {"components": 0},
        {"standardize": "test"},
        {"block_rows": 0},
    ],
)
def test_bad_parameters(params):
    X, y, groups = study()
    with pytest.raises(InputError):
        Ridge(**params).fit(X, y, groups=groups)


def test_bad_predict():
    X, y, groups = study()
    with pytest.raises(InputError, match="not fitted"):
        Ridge().predict(X)
    head = Ridge().fit(X, y, groups=groups)
    with pytest.raises(InputError, match="expecting 8 features"):
        head.predict(X[:, :4])
    for how in ("slide", "train"):
        with pytest.raises(InputError, match="NaN"):
            Ridge(standardize=how).fit(X, y, groups=groups).predict(np.where(X[0, 0] == X, np.nan, X))
    with pytest.raises(InputError, match="same encoder"):
        Ridge().fit_stream([(X, y, "a"), (X[:, :3], y, "b")])
    with pytest.raises(InputError, match="gene panel"):
        Ridge().fit_stream([(X, y, "a"), (X, y[:, :3], "b")])


def test_leave_one_patient_out_matches_the_naive_loop():
    X, y, slides = study(slides=(40, 30, 50, 20), noise=3.0)
    patients = np.where(np.isin(slides, ["slide0", "slide3"]), "p", np.where(slides == "slide1", "q", "r"))
    groups = np.stack([slides, patients], axis=1)
    Z, expected = standardised(X, slides, "slide"), np.zeros((len(ALPHAS), y.shape[1]))
    for held in "pqr":
        out = patients == held
        for i, alpha in enumerate(ALPHAS):
            model = SklearnRidge(alpha, solver="svd").fit(Z[~out], y[~out])
            expected[i] += ((model.predict(Z[out]) - y[out]) ** 2).sum(axis=0)
    for cv in ("auto", "patient"):
        ours = Ridge(ALPHAS, cv=cv).fit(X, y, groups=groups)
        np.testing.assert_allclose(ours.cv_error_, expected / len(y), rtol=1e-8)
    by_slide = Ridge(ALPHAS, cv="slide").fit(X, y, groups=groups)
    np.testing.assert_allclose(by_slide.cv_error_, Ridge(ALPHAS).fit(X, y, groups=slides).cv_error_)
    assert np.abs(by_slide.cv_error_ - ours.cv_error_).max() > 1e-3
    with pytest.raises(InputError, match="of one patient"):
        Ridge(cv="patient").fit(X, y, groups=np.stack([slides, slides != ""], axis=1))


@pytest.mark.parametrize("how", ["slide", "train"])
def test_exact_leave_one_out_matches_the_naive_loop_and_ridgecv(how):
    X, y, groups = study(slides=(15, 20), noise=2.0)
    Z, expected = standardised(X, groups, how), np.zeros((len(ALPHAS), y.shape[1]))
    for row in range(len(X)):
        rest = np.arange(len(X)) != row
        for i, alpha in enumerate(ALPHAS):
            model = SklearnRidge(alpha, solver="svd").fit(Z[rest], y[rest])
            expected[i] += (model.predict(Z[[row]])[0] - y[row]) ** 2
    ours = Ridge(ALPHAS, cv="loo", alpha_per="gene", standardize=how, block_rows=6).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.cv_error_, expected / len(y), rtol=1e-8)
    theirs = RidgeCV(ALPHAS, alpha_per_target=True).fit(Z, y)
    np.testing.assert_array_equal(ours.alpha_, theirs.alpha_)
    np.testing.assert_allclose(ours.coef_, theirs.coef_.T, rtol=1e-6, atol=1e-8)
    blocks = [(X[groups == g], y[groups == g], g) for g in np.unique(groups)]
    streamed = Ridge(ALPHAS, cv="loo", alpha_per="gene", standardize=how).fit_stream(blocks)
    np.testing.assert_allclose(streamed.cv_error_, ours.cv_error_, rtol=1e-9)
    with pytest.raises(InputError, match="reads the rows twice"):
        Ridge(cv="loo").fit_stream(iter(blocks))


def test_components_are_those_of_sklearn():
    X, y, groups = study(slides=(60, 50), d=9, noise=2.0)
    Xt, _, gt = study(seed=3, d=9)
    Z, Zt = standardised(X, groups, "slide"), standardised(Xt, gt, "slide")
    model = make_pipeline(PCA(4, svd_solver="full"), SklearnRidge(3.0)).fit(Z, y)
    ours = PCARidge(4, alphas=[3.0]).fit(X, y, groups=groups)
    np.testing.assert_allclose(ours.predict(Xt, groups=gt), model.predict(Zt), rtol=1e-8, atol=1e-8)
    error = np.zeros(y.shape[1])
    for held in np.unique(groups):  # components of the training slides only
        out = groups == held
        fold = make_pipeline(PCA(4, svd_solver="full"), SklearnRidge(3.0)).fit(Z[~out], y[~out])
        error += ((fold.predict(Z[out]) - y[out]) ** 2).sum(axis=0)
    np.testing.assert_allclose(ours.cv_error_[0], error / len(y), rtol=1e-8)
    every = PCARidge(99, alphas=ALPHAS).fit(X, y, groups=groups)
    np.testing.assert_allclose(every.coef_, Ridge(ALPHAS).fit(X, y, groups=groups).coef_, rtol=1e-7, atol=1e-9)


def test_without_slides_a_part_is_predicted_as_the_whole():
    X, y, groups = study()
    head = Ridge(ALPHAS).fit(X, y)
    np.testing.assert_allclose(head.predict(X[:5]), head.predict(X)[:5], rtol=1e-9)
    assert np.abs(head.predict(X, groups=groups) - head.predict(X)).max() > 1e-3
    known = Ridge(ALPHAS).fit(X, y, groups=groups)
    np.testing.assert_array_equal(known.predict(X[:40]), known.predict(X[:40], groups=groups[:40]))


def test_penalties_below_rounding_are_solved():
    X, y, groups = study(d=3)
    head = Ridge([1e-300], standardize="none").fit(np.hstack([X, X, X]), y, groups=groups)
    found = head.predict(np.hstack([X, X, X]))
    np.testing.assert_allclose(found, Ridge([1e-8], standardize="none").fit(X, y).predict(X), rtol=1e-3, atol=1e-3)
