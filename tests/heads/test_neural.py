from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spared_fm.errors import InputError
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.neural import Batches, Plan, Split, entries, fit_net, inner_split


def problem(n=120, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32))
    y = x @ torch.tensor([[1.0], [2.0], [0.0], [-1.0]])
    return x, y, lambda net, rows: ((net(x[rows]) - y[rows]) ** 2).mean()


def linear():
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 1))


def weights(net):
    return torch.cat([p.detach().ravel() for p in net.parameters()])


def test_patients_are_held_out_whole_else_slides_else_a_block():
    slides = np.repeat(["a", "b", "c", "d"], 25)
    patients = np.repeat(["p", "q"], 50)
    for seed in range(4):
        split = inner_split(np.stack([slides, patients], axis=1), None, 100, seed=seed)
        assert split.by == "patient"
        assert len(set(patients[split.held])) == 1
        assert not set(patients[split.train]) & set(patients[split.held])
        split = inner_split(slides, None, 100, seed=seed)
        assert split.by == "slide"
        assert len(set(slides[split.held])) == 1
        assert not set(slides[split.train]) & set(slides[split.held])
    one = np.stack([slides, ["p"] * 100], axis=1)
    assert inner_split(one, None, 100).by == "slide"
    xy = np.stack([np.tile(np.arange(20.0), 5), np.repeat(np.arange(5.0), 20)], axis=1)
    split = inner_split(["s"] * 100, xy, 100)
    assert split.by == "block"
    assert xy[split.train, 0].max() < xy[split.held, 0].min()
    assert len(split.held) == 20
    assert inner_split(None, None, 100).by == "rows"
    few = inner_split(None, None, 5)
    assert (few.by, len(few.train), len(few.held)) == ("none", 5, 0)


def test_every_row_once_before_any_again_and_units_whole():
    rows = np.arange(3, 20)
    seen = torch.cat(list(Batches(rows, None, Plan(steps=4, batch=5), 4))).numpy()
    assert len(set(seen[:17])) == 17
    assert len(seen) == 20
    units = np.arange(20) // 7
    for batch in Batches(rows, units, Plan(steps=5), 5):
        unit = units[batch[0]]
        np.testing.assert_array_equal(batch, rows[units[rows] == unit])


@pytest.mark.parametrize("units", [None, np.repeat([0, 1, 2], 40)])
def test_learns_and_the_seed_decides(units):
    _, _, loss = problem()
    split = inner_split(None, None, 120)
    plan = Plan(steps=60, lr=0.1, batch=64, every=20, schedule="cosine")
    before = torch.random.get_rng_state()
    net, history = fit_net(linear, loss, split, plan, units=units)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not net.training
    assert loss(net, torch.arange(120)).item() < 0.1
    assert [step for step, _ in history.scores] == [20, 40, 60]
    torch.manual_seed(99)
    again, _ = fit_net(linear, loss, split, plan, units=units)
    assert torch.equal(weights(net), weights(again))
    other, _ = fit_net(linear, loss, split, Plan(**{**vars(plan), "seed": 1}), units=units)
    assert not torch.equal(weights(net), weights(other))


def test_stops_when_the_held_out_rows_get_worse_and_keeps_the_best():
    """The score is made to get worse after 20 steps, so training must end at 20 + 2 · 10, with the weights of 20."""
    _, _, loss = problem()
    kept, calls = [], []

    def score(net, rows):
        assert not net.training
        assert not torch.is_grad_enabled()
        calls.append(len(rows))
        kept.append(weights(net).clone())
        return torch.tensor(1.0 - len(kept) if len(kept) < 3 else 5.0)

    split = inner_split(None, None, 120)
    plan = Plan(steps=100, every=10, patience=2, refit=False)
    net, history = fit_net(linear, loss, split, plan, score=score)
    assert calls == [24] * 4
    assert history.best_step == 20
    assert [step for step, _ in history.scores] == [10, 20, 30, 40]
    assert torch.equal(weights(net), kept[1])


def test_refit_sees_all_rows_as_often_as_was_best():
    _, _, loss = problem()
    seen = []

    def counted(net, rows):
        if net.training:
            seen.append(rows.clone())
        return loss(net, rows)

    split = Split(np.arange(100), np.arange(100, 120), "rows")
    plan = Plan(steps=20, every=10, batch=120)
    _, history = fit_net(linear, counted, split, plan, score=lambda net, rows: torch.tensor(float(len(seen))))
    assert history.best_step == 10
    assert [len(rows) for rows in seen[20:]] == [120] * 12
    assert all(rows.max() < 100 for rows in seen[:20])


def test_one_row_and_divergence_and_bad_plans():
    _, _, loss = problem()
    one = inner_split(None, None, 1)
    _, history = fit_net(linear, loss, one, Plan(steps=3))
    assert (history.best_step, history.scores) == (3, [])
    split = inner_split(None, None, 120)
    with pytest.raises(InputError, match="diverged"):
        fit_net(linear, lambda net, rows: loss(net, rows) * torch.nan, split, Plan(steps=3, every=1))
    with pytest.raises(InputError, match="diverged"):
        fit_net(linear, lambda net, rows: loss(net, rows) * torch.nan, one, Plan(steps=3))
    for bad in (
        {"steps": 0},
        {"steps": 1, "lr": 0.0},
        {"steps": 1, "optimizer": "lion"},
        {"steps": 1, "schedule": "up"},
    ):
        with pytest.raises(InputError):
            fit_net(linear, loss, one, Plan(**bad))
    for device in ("tpu9", "cuda:99", "mps"):
        with pytest.raises(InputError, match="device"):
            pick_device(device)


def test_nothing_is_written_or_said(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    _, _, loss = problem()
    fit_net(linear, loss, inner_split(None, None, 120), Plan(steps=2, every=1))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_entries_to_fit():
    assert entries(None, (3, 2), "all") is None
    mask = np.array([[True, False]] * 3)
    np.testing.assert_array_equal(entries(mask, (3, 2), "measured"), mask)
    for bad in (None, mask[:, :1], np.zeros((3, 2), dtype=bool)):
        with pytest.raises(InputError, match="mask"):
            entries(bad, (3, 2), "measured")
