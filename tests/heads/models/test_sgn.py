from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.models.sgn import SGN, described
from tests.heads.models.lattice import error, planted

SMALLEST = {"depth": 1, "width": 8, "steps": 5}


def many_genes(seed=0, slides=4):
    """Synthetic: a gene's description says how it depends on the features, and so does that of genes not in the fit."""
    X, _, where = planted(seed, slides)
    text = np.random.default_rng(7).normal(size=(110, X.shape[1]))
    return X, X @ text.T, text, where


@pytest.mark.full
def test_learns_from_the_spots_around():
    X, y, where = planted()
    Xt, yt, there = planted(seed=1, slides=1)
    head = SGN(depth=2, width=64, steps=150, lr=3e-3).fit(X, y, **where)
    assert error(head.predict(Xt, **there), yt) < 0.7  # a spot's own features explain a fifth


@pytest.mark.full
def test_predicts_genes_that_were_not_in_the_fit(tmp_path):
    X, y, text, where = many_genes()
    Xt, yt, _, there = many_genes(1, 1)
    head = SGN(text[:100], depth=1, width=64, steps=100, lr=3e-3).fit(X, y[:, :100], **where)
    found = head.predict_genes(Xt, text[100:], **there)
    assert found.shape == (36, 10)
    assert found.dtype == np.float32
    pcc = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, yt[:, 100:].T, strict=True)]
    assert np.mean(pcc) > 0.6
    known = head.predict_genes(Xt, text[:100], **there) * head.spread_ + head.offset_
    np.testing.assert_allclose(known, head.predict(Xt, **there), rtol=1e-4, atol=1e-4)

    gone = head.get_params() | {"gene_features": str(tmp_path / "gone.npy")}  # a fitted head has what it needs
    named = SGN.from_state(gone, head.state())
    np.testing.assert_array_equal(named.predict_genes(Xt, text[100:], **there), found)
    with pytest.raises(InputError, match="long"):
        head.predict_genes(Xt, text[100:, :3], **there)


def test_published_correlation_looks_at_the_wrong_genes():
    X, y, text, where = many_genes(slides=2)
    right, published = (
        SGN(text[:100], **SMALLEST, as_published=told).fit(X, y[:, :100], **where).predict(X, **where)
        for told in (False, True)
    )
    assert not np.array_equal(right, published)


def test_descriptions(tmp_path):
    X, y, where = planted(slides=1)
    words = np.random.default_rng(0).normal(size=(3, 4, 5))
    np.save(tmp_path / "words.npy", words)
    given, read = (SGN(text, **SMALLEST).fit(X, y, **where) for text in (words, str(tmp_path / "words.npy")))
    assert given.text_.shape == (3, 4, 5)
    np.testing.assert_array_equal(given.predict(X, **where), read.predict(X, **where))
    assert described(words[:, 0]).shape == (3, 1, 5)
    with pytest.raises(InputError, match="without gene_features"):
        SGN(**SMALLEST).fit(X, y, **where).predict_genes(X, words, **where)
    with pytest.raises(InputError, match="a row for each"):
        SGN(words[:2], **SMALLEST).fit(X, y, **where)
    for bad in (words[0, 0], words * np.nan, words[:0]):
        with pytest.raises(InputError, match="hold NaN"):
            described(bad)
    with pytest.raises(InputError, match="npy file"):
        described(tmp_path / "none.npy")
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(InputError, match="npy file"):
        described(tmp_path / "objects.npy")
