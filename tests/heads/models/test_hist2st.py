from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import nbinom

from spared_fm.errors import InputError
from spared_fm.heads.models.hist2st import Hist2ST
from spared_fm.heads.models.pieces import cut
from tests.heads.models.lattice import SIDE, error, planted

SMALLEST = {"depth": 1, "width": 8, "steps": 5}


def tissue(seed, slides):
    """Synthetic: features that are smooth over the slide, and expression that is linear in them."""
    X, _, where = planted(seed, slides)
    X = 3.0 * uniform_filter(X.reshape(slides, SIDE, SIDE, -1), (0, 3, 3, 0)).reshape(len(X), -1)
    return X, np.stack([X[:, 0] + X[:, 1], X[:, 1] - X[:, 2], np.full(len(X), 7.0)], axis=1), where


@pytest.mark.full
def test_learns_better_with_the_spot_among_its_neighbours():
    X, y, where = tissue(0, 6)
    Xt, yt, there = tissue(1, 2)
    right, published = (
        Hist2ST(depth=1, width=32, steps=60, lr=3e-3, as_published=told).fit(X, y, **where).predict(Xt, **there)
        for told in (False, True)
    )
    assert error(right, yt) < 0.6
    assert error(right, yt) < error(published, yt)


def test_far_spots_are_no_neighbours():
    X, y, where = planted(slides=1)
    where["coords"][0] = [200.0 * 9, 200.0 * 9]
    loose, pruned = (Hist2ST(**SMALLEST, prune=prune).fit(X, y, **where) for prune in (None, 2.0))
    (piece,) = cut(where["coords"], 4096)
    published = Hist2ST(as_published=True, prune=None)
    near = [head._inputs(torch.zeros(36, 6), piece)["near"] for head in (loose, pruned, published)]
    assert [int((table[0] >= 0).sum()) for table in near] == [5, 1, 4]
    assert [0 in table[0] for table in near] == [True, True, False]
    assert not np.array_equal(loose.predict(X, **where), pruned.predict(X, **where))


def test_counts_and_views_change_the_fit():
    X, y, where = planted(slides=2)
    counts = np.random.default_rng(0).poisson(3.0, size=y.shape)
    plain = Hist2ST(**SMALLEST).fit(X, y, **where)
    counted = Hist2ST(**SMALLEST).fit(X, y, **where, counts=counts)
    off = Hist2ST(**SMALLEST, zinb=0.0).fit(X, y, **where, counts=counts)
    np.testing.assert_array_equal(off.predict(X, **where), plain.predict(X, **where))
    assert not np.array_equal(counted.predict(X, **where), plain.predict(X, **where))
    assert np.isfinite(counted.predict(X, **where)).all()
    with pytest.raises(InputError, match="raw counts"):
        Hist2ST(**SMALLEST).fit(X, y, **where, counts=counts - 9)

    views = np.column_stack([X, X[:, ::-1]])
    head = Hist2ST(2, **SMALLEST, dropout=0.0).fit(views, y, **where)
    changed = np.column_stack([X, X])  # predictions are those of the first view
    np.testing.assert_array_equal(head.predict(changed, **where), head.predict(views, **where))
    alone = Hist2ST(2, **SMALLEST, dropout=0.0, distil=0.0).fit(views, y, **where)
    assert np.abs(alone.predict(views, **where) - head.predict(views, **where)).max() > 1e-3
    with pytest.raises(InputError, match="cached views"):
        Hist2ST(5, **SMALLEST).fit(X, y, **where)


def test_likelihood_is_that_of_the_distribution():
    X, y, where = planted(slides=1)
    net = Hist2ST(**SMALLEST).fit(X, y, **where).net_.double()
    hidden = torch.randn(36, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts, size = (
        torch.arange(36.0).double()[:, None] % 5 * torch.ones(3),
        torch.linspace(0.5, 2.0, 36).double()[:, None],
    )
    with torch.no_grad():
        log_mean, r, zero = (part.numpy() for part in net.counts(hidden).chunk(3, dim=-1))
        found = net.unlikely(hidden, counts, size).numpy()
    r, zero, mean = np.log1p(np.exp(r)), 1 / (1 + np.exp(-zero)), np.exp(log_mean) * size.numpy()
    expected = (1 - zero) * nbinom.pmf(counts.numpy(), r, r / (r + mean)) + zero * (counts.numpy() == 0)
    np.testing.assert_allclose(found, -np.log(expected), rtol=1e-6)
