from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.targets.completion import rate_nets
from spared_fm.targets.completion.data import Completer, Section, panel_of, without
from spared_fm.targets.completion.hiding import section, truth
from spared_fm.targets.completion.rate_attention import RateAttention
from spared_fm.targets.completion.rate_entries import attended, errors, hide_in, predict
from spared_fm.targets.completion.rate_inputs import View, around, counted, cut, hidden_from, prior_of, unit_of
from spared_fm.targets.completion.rate_nets import RateNet, Sizes
from spared_fm.targets.completion.training import seeded
from tests.targets.completion.slides import study, synthetic

GENES = tuple(f"G{i}" for i in range(10))
SMALL = Sizes(
    width=8, blocks=1, near_heads=2, slide_heads=2, key=4, per_gene=1, gene=2, entry=8, dropout=0.0, input_dropout=0.0
)
QUICK = {"members": 2, "steps": 6, "every": 3, "spots": 100}


def sections(split, layer="log1p"):
    return [section(one, layer=layer) for one in study() if one.split == split]


RAW = study()[-1]
TRAIN, CHECK, TEST = (sections(split) for split in ("train", "val", "test"))
PANEL = panel_of(TRAIN, GENES)


def fit(**settings):
    return RateAttention(sizes=SMALL, **{**QUICK, **settings})


@pytest.fixture(scope="module")
def fitted():
    return fit().fit(TRAIN, CHECK, PANEL)


def hiding(one, share=0.4, seed=0):
    return one.visible & (np.random.default_rng(seed).random(one.visible.shape) < share)


def test_is_a_completer_and_learns(fitted):
    assert isinstance(fitted, Completer)
    gone = hiding(TEST[0])
    seen, wanted = section(RAW, gone), truth(RAW, gone)
    longer = fit(members=1, steps=60, every=20).fit(TRAIN, CHECK, PANEL).complete(seen)
    mean = seen.values.sum(axis=0) / np.maximum(seen.visible.sum(axis=0), 1)
    baseline = np.mean(np.square((mean - wanted)[gone]))
    assert np.mean(np.square((longer.values - wanted)[gone])) < 0.8 * baseline
    assert np.all(longer.spread > 0)
    inside = np.abs(longer.values - wanted)[gone] < 1.645 * longer.spread[gone]
    assert 0.75 < inside.mean() < 0.99


def test_predictions_are_no_lower_than_one_count(fitted):
    done = fitted.complete(TEST[0])
    assert np.all(done.values >= TEST[0].unit - 1e-5)
    assert done.values.dtype == done.spread.dtype == np.float32


@pytest.mark.parametrize("layer", ["log1p", "lognorm"])
def test_counts_come_back_and_hiding_is_that_of_raw_counts(layer):
    raw = study()[0]
    one = section(raw, layer=layer)
    unit = unit_of([one])
    assert (unit.base, unit.total) == ((2.0, 1e6) if layer == "log1p" else (np.e, 1e4))
    found = counted(one, unit)
    np.testing.assert_allclose(found.counts, raw.counts, rtol=2e-4)
    gone = hiding(one)
    again, first = hidden_from(found, gone, unit), counted(section(raw, gone, layer=layer), unit)
    for name in ("counts", "total", "amount"):
        np.testing.assert_allclose(getattr(again, name), getattr(first, name), rtol=1e-3)


def test_what_is_hidden_tells_nothing(fitted):
    raw = study()[-1]
    gone = hiding(section(raw))
    other = dataclasses.replace(raw, counts=np.where(gone, raw.counts * 7 + 3, raw.counts))
    first, second = (fitted.complete(section(one, gone)) for one in (raw, other))
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.spread, second.spread)
    # nor does training see it: inputs of a case are the same whatever the hidden entries hold
    unit, prior = fitted.unit, fitted.prior
    maps = []
    for factor in (1, 5):
        one = counted(TEST[0], unit)
        changed = dataclasses.replace(one, counts=np.where(gone, one.counts * factor, one.counts))
        changed = dataclasses.replace(changed, total=one.total + (changed.counts - one.counts).sum(axis=1))
        case = hide_in(
            changed, around(TEST[0]), gone, dataclasses.replace(unit, total=None), prior, torch.device("cpu")
        )
        maps.append(np.stack(case.view.maps(slice(None))[0]))
    np.testing.assert_allclose(maps[0], maps[1], atol=2e-4)


def test_training_and_use_predict_alike_and_blocks_do_not_matter(fitted, monkeypatch):
    gone = hiding(TEST[0])
    case = hide_in(counted(TEST[0], fitted.unit), around(TEST[0]), gone, fitted.unit, fitted.prior, fitted.device)
    with torch.no_grad():
        error, _ = errors(fitted.nets[0], case, fitted.unit.base)
    whole, _ = predict(fitted.nets[:1], case.view, case.slide)
    monkeypatch.setattr(rate_nets, "BLOCK", 7)
    parts, _ = predict(fitted.nets[:1], case.view, case.slide)
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)
    amount = case.amount * np.exp2(whole.numpy()[case.spot, case.gene])
    np.testing.assert_allclose(fitted.unit.log(amount) - case.truth, error.numpy(), atol=2e-5)


def test_large_slides_attend_to_a_part_of_their_spots(fitted, monkeypatch):
    whole = fitted.complete(TEST[0]).values
    monkeypatch.setattr(rate_nets, "REFERENCES", 20)
    part = fitted.complete(TEST[0]).values
    assert not np.array_equal(part, whole)
    assert np.abs(part - whole).max() < 1


def test_a_spot_never_attends_to_itself():
    net = seeded(lambda: RateNet(10, SMALL), 0).eval()
    one = counted(TEST[0], unit_of(TRAIN))
    view = View(one, around(TEST[0]), prior_of([counted(s, unit_of(TRAIN)) for s in TRAIN]))
    slide = attended(view, torch.device("cpu"))
    tokens = torch.randn(len(one.counts), 8)
    keys = net.pooling.keys(tokens, slide)
    before = net.pooling(tokens[5:7], keys, slice(5, 7), slide)
    slide.pooled[5] += 9
    after = net.pooling(tokens[5:7], keys, slice(5, 7), slide)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_same_seed_same_result_and_resume(fitted, tmp_path):
    first = fitted.complete(TEST[0]).values
    assert np.array_equal(fit().fit(TRAIN, CHECK, PANEL).complete(TEST[0]).values, first)
    assert not np.array_equal(fit().fit(TRAIN, CHECK, PANEL, seed=1).complete(TEST[0]).values, first)

    class Killed(Exception):
        pass

    def kill(step, steps, figures):
        assert steps == 12
        assert "loss" in figures
        if step == 9:  # inside the second member
            raise Killed

    class Stop(Exception):
        pass

    with pytest.raises(Killed):
        fit().fit(TRAIN, CHECK, PANEL, checkpoint=tmp_path, progress=kill)
    assert np.array_equal(fit().fit(TRAIN, CHECK, PANEL, checkpoint=tmp_path).complete(TEST[0]).values, first)
    with pytest.raises(InputError, match="other learning_rate"):
        fit(learning_rate=1e-3).fit(TRAIN, CHECK, PANEL, checkpoint=tmp_path)


def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    again = RateAttention.load(tmp_path / "m", GENES)
    for name in ("values", "spread"):
        assert np.array_equal(getattr(again.complete(TEST[0]), name), getattr(fitted.complete(TEST[0]), name))
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    assert card["name"] == "rate-attention"
    assert card["settings"]["members"] == len(card["trained"]) == 2
    with pytest.raises(InputError, match="another panel"):
        RateAttention.load(tmp_path / "m", [*GENES[:-1], "other"])
    with pytest.raises(InputError, match="not fitted"):
        fit().save(tmp_path / "n")


def few(n, one=TEST[0]):
    return Section("few", one.values[:n], one.visible[:n], one.xy[:n], one.library[:n], one.k, unit=one.unit[:n])


@pytest.mark.parametrize("n", [0, 1, 2, 18])
def test_slides_of_few_spots(fitted, n):
    done = fitted.complete(few(n))
    assert done.values.shape == (n, 10)
    assert np.isfinite(done.values).all()
    assert np.isfinite(done.spread).all()


def test_missing_genes_spots_and_slides(fitted):
    gone = np.zeros_like(TEST[0].visible)
    gone[:, 3] = True
    gone[7] = True
    seen, wanted = section(RAW, gone), truth(RAW, gone)
    done = fitted.complete(seen)
    assert np.isfinite(done.values).all()
    usual = np.median(wanted[:, 3][TEST[0].visible[:, 3]])
    assert abs(np.median(done.values[:, 3]) - usual) < 1.5  # a gene missing on the whole slide rests on training
    nothing = without(TEST[0], np.ones_like(TEST[0].visible))
    empty = dataclasses.replace(nothing, library=np.zeros_like(nothing.library), unit=np.zeros_like(nothing.unit))
    assert np.isfinite(fitted.complete(empty).values).all()
    blank = dataclasses.replace(
        seen, library=np.where(np.arange(72) == 7, 0, seen.library), unit=seen.unit * (np.arange(72) != 7)[:, None]
    )
    done = fitted.complete(blank)
    assert np.all(done.values[7] > 0.5)  # at the slide's median depth


def test_without_units_and_for_corrected_layers():
    rng = np.random.default_rng(0)

    def bare(one):
        shifted = np.where(one.visible, one.values + rng.normal(0, 0.3, one.values.shape), 0).astype(np.float32)
        return dataclasses.replace(one, values=shifted, unit=None)

    train = [bare(one) for one in TRAIN]
    assert unit_of(train).total is None
    done = fit(members=1, steps=30).fit(train, [], panel_of(train, GENES))
    test = bare(TEST[0])
    gone = hiding(test)
    error = (done.complete(without(test, gone)).values - test.values)[gone]
    assert np.mean(error**2) < np.var(test.values[gone])


def test_refusals(fitted):
    with pytest.raises(InputError, match="no training spot"):
        fit().fit([few(0)], [], PANEL)
    unseen = [without(one, np.arange(10) == np.full((len(one.values), 1), 4)) for one in TRAIN]
    with pytest.raises(InputError, match="G4 is measured in no training spot"):
        fit().fit(unseen, [], PANEL)
    with pytest.raises(InputError, match="has 9 genes"):
        fitted.complete(section(synthetic("s", "test", genes=9)))
    with pytest.raises(InputError, match="not fitted"):
        fit().complete(TEST[0])
    with pytest.raises(InputError, match="no such setting"):
        RateAttention(leaning_rate=1.0)
    with pytest.raises(InputError, match="not a device"):
        RateAttention(device="abacus")
    with pytest.raises(InputError, match="one member"):
        RateAttention(members=0)


def test_cut_keeps_every_spot():
    one = few(50)
    pieces = cut(one, 20)
    assert max(len(piece.values) for piece in pieces) <= 20
    assert sorted(map(tuple, np.concatenate([p.xy for p in pieces]))) == sorted(map(tuple, one.xy))
    rows = [np.flatnonzero((one.xy == place).all(axis=1))[0] for place in pieces[1].xy]
    assert np.array_equal(pieces[1].values, one.values[rows])
    assert np.array_equal(pieces[1].unit, one.unit[rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    there = RateAttention.load(tmp_path / "m", GENES, device="cuda")
    np.testing.assert_allclose(there.complete(TEST[0]).values, fitted.complete(TEST[0]).values, atol=1e-3)
