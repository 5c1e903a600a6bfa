"""What every head must do, whatever it is."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from spared_fm.encoders.registry import rows as encoders
from spared_fm.errors import InputError
from spared_fm.heads.base import Head, StreamingHead
from spared_fm.heads.io import load, save
from spared_fm.heads.registry import HEADS, PRESETS, head_class, make

#: Heads that need positions, which scikit-learn doesn't give; two only pass them on to others.
POSITIONAL = {name for name in HEADS if "coords" in head_class(name).sees} - {"multi-encoder", "stacking"}
NAMES = sorted(HEADS)


#: Sizes at which a network trains in no time; scikit-learn fits each head fifty times.
TINY = {"steps": 3, "width": 8, "ensemble": 1, "grid": 1}  # of tokens: the features of these tests are few


def tiny(name):
    if name == "stacking":
        return make(name, heads=["ridge", "knn"])
    known = make(name).get_params()
    return make(name, **{key: value for key, value in TINY.items() if key in known})


def study(n=40, d=5, genes=3, slides=2, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(dtype)
    groups = np.array([[f"s{i}", f"p{i // 2}"] for i in np.arange(n) * slides // n])
    return X, rng.normal(size=(n, genes)), {"groups": groups, "coords": rng.uniform(0, 1e4, (n, 2))}


#: Heads that take seconds for scikit-learn's fifty fits.
SLOW = {"egn", "bleep", "pixnet", "mlp", "lightgbm", "spared-linear"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.full] * (n in SLOW)) for n in NAMES if n not in POSITIONAL]
)
def test_scikit_learn_accepts_it(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # check_estimator warns of checks that it skips
        check_estimator(tiny(name))


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_protocol(name, tmp_path):
    X, y, where = study()
    head = tiny(name)
    assert isinstance(head, Head)
    assert head.name == name
    assert head.sees <= {"features", "coords", "targets-of-slide"}
    unfair = "targets-of-slide" in head.sees or ("features" not in head.sees and "coords" in head.sees)
    assert head.label.startswith(("oracle", "leakage")) == unfair
    assert head.shown.startswith(name)
    for use in (head.predict, lambda _: head.state()):
        with pytest.raises(NotFittedError, match="not fitted"):
            use(X)
    assert head.fit(X, y, **where) is head
    found = head.predict(X, **where)
    assert found.shape == (40, 3)
    assert found.dtype == np.float32
    assert head.predict(X.astype(np.float64), **where).dtype == np.float64
    assert clone(head).get_params() == head.get_params()

    save(head, tmp_path / "run", {})
    again, _ = load(tmp_path / "run")
    np.testing.assert_array_equal(again.predict(X, **where), found)
    assert again.n_features_in_ == 5


@pytest.mark.parametrize("name", NAMES)
def test_stream_is_the_same(name):
    head = tiny(name)
    if not isinstance(head, StreamingHead):
        pytest.skip("holds the training spots")
    X, y, where = study(n=60, slides=4)
    blocks = []
    for start in range(0, 60, 7):
        rows = slice(start, start + 7)
        blocks.append((X[rows], y[rows], where["groups"][rows]))
    whole = clone(head).fit(X, y, **where).predict(X, **where)
    np.testing.assert_allclose(head.fit_stream(blocks).predict(X, **where), whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="gene panel"):
        head.fit_stream([blocks[0], (X[:3], y[:3, :1], "s9")])
    with pytest.raises(InputError, match="no training spots"):
        head.fit_stream([])
    with pytest.raises(InputError, match="no training spots"):
        head.fit_stream([(X[:0], y[:0], "s0")])


@pytest.mark.parametrize("name", NAMES)
def test_mapped_float16_features(name, tmp_path):
    X, y, where = study(dtype=np.float16)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    a, b = tiny(name).fit(mapped, y, **where), tiny(name).fit(X.astype(np.float64), y, **where)
    np.testing.assert_allclose(a.predict(mapped, **where), b.predict(X, **where), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slides", [(1,), (1, 1), (1, 1, 1, 9), (2, 3)])
def test_one_spot_slides_one_gene_and_constant_features(name, slides):
    n = sum(slides)
    X, y, where = study(n=n, d=4, genes=1)
    X[:, 1] = 7.0
    X[:, 2] = 0.1
    y[:] += 3.0
    where["groups"] = np.repeat([f"s{i}" for i in range(len(slides))], slides)
    for targets in (y, y[:, 0]):
        head = tiny(name).fit(X, targets, **where)
        found = head.predict(X, **where)
        assert found.shape == targets.shape
        assert np.isfinite(found).all()
        one = {key: value[:1] for key, value in where.items()}
        assert np.isfinite(head.predict(X[:1], **one)).all()
    assert head.predict(X[:0], groups=where["groups"][:0], coords=where["coords"][:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_constant_features_and_genes_alone(name):
    X, y, where = study(n=30)
    X[:], y[:] = 2.0, 5.0
    found = tiny(name).fit(X, y, **where).predict(X, **where)
    if name == "hest-exact":  # no intercept, as published
        np.testing.assert_array_equal(found, 0.0)
    else:
        np.testing.assert_allclose(found, 5.0, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_values_are_refused(name, bad):
    X, y, where = study()
    for row in (0, 7):
        holed, lost = X.copy(), y.copy()
        holed[row, 1] = lost[row, 1] = bad
        with pytest.raises(InputError, match="targets hold NaN"):
            tiny(name).fit(X, lost, **where)
        if "features" in tiny(name).sees:
            with pytest.raises(InputError, match="features hold NaN"):
                tiny(name).fit(holed, y, **where)
            with pytest.raises(InputError, match="features hold NaN"):
                tiny(name).fit(X, y, **where).predict(holed, **where)


@pytest.mark.parametrize(
    ("part", "words"),
    [("groups", "slide labels"), ("coords", "of coords"), ("mask", "of mask"), ("y", "of targets")],
)
def test_rows_that_do_not_match(part, words):
    X, y, where = study()
    given = {"y": y, "mask": y > 0, **where}
    given[part] = given[part][:-1]
    with pytest.raises(InputError, match=words):
        make("ridge").fit(X, **given)


@pytest.mark.parametrize("name", NAMES)
def test_tables_can_say_what_stands_for_pixels(name):
    cls = head_class(name)
    published = cls.__module__.startswith("spared_fm.heads.models.")
    assert bool(cls.cached) == (published and name not in ("eggn", "sgn"))  # these two read vectors in the original too
    assert not cls.cached or re.fullmatch(r".{1,60}; the original.{1,60}", cls.cached)


def test_unknown_head_and_parameter():
    with pytest.raises(InputError, match="gene-mean, hest"):
        make("rigde")
    with pytest.raises(InputError, match="depth"):
        make("ridge", depth=3)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_head_with_parameters_and_a_published_encoder(name):
    kind, params, encoder, views = PRESETS[name]
    found = make(name).get_params()
    assert type(make(name)) is head_class(kind)
    assert {key: found[key] for key in params} == params
    assert make(name, steps=7).get_params() == found | {"steps": 7}
    assert make(name, target="deltas").get_params()["target"] == "deltas"
    assert encoder in encoders()
    assert (views == "dihedral") == (params.get("views") == 8)
