from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion.hiding import rng_of, section, truth
from spared_fm.targets.normalize import lognorm
from spared_fm.targets.spared.tpm import log1p
from tests.targets.completion.slides import synthetic


@pytest.fixture
def raw():
    return synthetic("s", "test")


@pytest.fixture
def hidden(raw):
    return (raw.counts > 0) & (np.random.default_rng(0).random(raw.counts.shape) < 0.4)


def test_nothing_hidden_is_the_ordinary_normalisation(raw):
    per_base = raw.counts / raw.lengths
    tpm = per_base / (per_base.sum(axis=1) + raw.rest_per_base)[:, None] * 1e6
    np.testing.assert_allclose(section(raw).values, log1p(tpm), rtol=1e-6)
    np.testing.assert_allclose(truth(raw), log1p(tpm), rtol=1e-12)
    totals = raw.counts.sum(axis=1) + raw.rest_counts
    np.testing.assert_allclose(section(raw, layer="lognorm").values, lognorm(raw.counts, totals), rtol=1e-6)
    np.testing.assert_allclose(section(raw).library, np.log1p(totals), rtol=1e-6)


@pytest.mark.parametrize("layer", ["log1p", "lognorm"])
def test_hidden_counts_leave_no_trace(raw, hidden, layer):
    """Other counts, and many more of them, in the hidden entries: every input is the same to the bit."""
    other = replace(raw, counts=np.where(hidden, raw.counts * 17 + 3, raw.counts))
    one, two = section(raw, hidden, layer), section(other, hidden, layer)
    for name in ("values", "visible", "library", "unit", "xy"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name
    assert not np.array_equal(section(other, None, layer).values, section(raw, None, layer).values)
    visible = (raw.counts > 0) & ~hidden
    assert truth(raw, hidden, layer)[visible].tobytes() == truth(other, hidden, layer)[visible].tobytes()


def test_truth_and_values_share_one_unit(raw, hidden):
    seen = section(raw, hidden)
    np.testing.assert_allclose(truth(raw, hidden)[seen.visible], seen.values[seen.visible], rtol=1e-6)
    assert (truth(raw, hidden)[hidden] > truth(raw)[hidden]).all()  # less is visible: each count weighs more
    ones = raw.counts == 1
    np.testing.assert_allclose(truth(raw, hidden)[ones], seen.unit[ones], rtol=1e-6)


def test_a_spot_of_which_nothing_is_visible_has_no_truth(raw):
    rest, per_base = raw.rest_counts.copy(), raw.rest_per_base.copy()
    rest[3] = per_base[3] = 0
    hidden = np.zeros(raw.counts.shape, bool)
    hidden[3] = True
    bare = replace(raw, rest_counts=rest, rest_per_base=per_base)
    assert np.isnan(truth(bare, hidden)[3]).all()
    assert np.isfinite(np.delete(truth(bare, hidden), 3, axis=0)).all()
    assert not section(bare, hidden).values[3].any()


def test_bad_counts_and_layers_are_refused(raw):
    with pytest.raises(InputError, match="slide s has negative, NaN"):
        replace(raw, counts=np.where(raw.counts > 2, np.nan, raw.counts))
    with pytest.raises(InputError, match="slide s: rest_counts"):
        replace(raw, rest_counts=np.ones(3))
    with pytest.raises(InputError, match="unknown layer 'tpm'"):
        section(raw, layer="tpm")


def test_draws_go_by_slide_and_repeat():
    draws = [rng_of(slide, repeat).random(4).tolist() for slide, repeat in (("a", 0), ("a", 0), ("a", 1), ("b", 0))]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3
