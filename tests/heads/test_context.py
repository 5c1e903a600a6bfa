from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.context import ContextMLP, ContextRidge
from spared_fm.heads.neighbours import hop_means
from spared_fm.heads.ridge import Ridge
from tests.heads.tissue import pcc, tissue


def parts(**how):
    X, y, groups, coords = tissue(slides=4, **how)
    new = groups == "s3"
    return (X[~new], y[~new], groups[~new], coords[~new]), (X[new], y[new], groups[new], coords[new])


def test_surroundings_help_where_targets_depend_on_them_and_only_there():
    for around, least, most in ((1.0, 0.1, 1.0), (0.0, -0.05, 0.02)):
        (X, y, g, xy), (Xt, yt, gt, xyt) = parts(around=around)
        context = ContextRidge(1).fit(X, y, groups=g, coords=xy).predict(Xt, groups=gt, coords=xyt)
        alone = Ridge().fit(X, y, groups=g).predict(Xt, groups=gt)
        assert least < pcc(context, yt, gt) - pcc(alone, yt, gt) < most


def test_is_ridge_on_hop_means():
    X, y, groups, coords = tissue()
    wide = hop_means(X, groups, coords, 2)
    expected = Ridge(alpha_per="gene").fit(wide, y, groups=groups).predict(wide, groups=groups)
    head = ContextRidge(2, alpha_per="gene").fit(X, y, groups=groups, coords=coords)
    np.testing.assert_allclose(head.predict(X, groups=groups, coords=coords), expected, rtol=1e-6)
    again = ContextRidge.from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(X, groups=groups, coords=coords), expected)


def test_mlp_sees_surroundings():
    (X, y, g, xy), (Xt, yt, gt, xyt) = parts(around=2.0)
    found = {}
    for hops in (0, 1):
        head = ContextMLP(hops, steps=40, width=32, lr=3e-3).fit(X, y, groups=g, coords=xy)
        found[hops] = pcc(head.predict(Xt, groups=gt, coords=xyt), yt, gt)
    assert found[1] > found[0] + 0.1


def test_bad_hops_and_no_coords():
    X, y, groups, coords = tissue()
    for head in (ContextRidge, ContextMLP):
        with pytest.raises(InputError, match="needs coords"):
            head().fit(X, y, groups=groups)
        with pytest.raises(InputError, match="hops"):
            head(-1).fit(X, y, groups=groups, coords=coords)
