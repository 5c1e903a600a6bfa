from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.targets.completion import spackle
from spared_fm.targets.completion.data import Completer, Section, panel_of
from spared_fm.targets.completion.spackle import Spackle, SpackleReleased, batch_rows
from spared_fm.targets.completion.spackle_nets import DescribedNet, ReleasedNet, read_released
from spared_fm.targets.completion.training import seeded
from spared_fm.targets.spared.graph import hops_around, slide_graph
from spared_fm.targets.spared.median import complete_median
from tests.targets.completion.golden_spackle import GOLDEN, SIZES, inputs, weights

BOTH = [Spackle, SpackleReleased]
GENES = 6
NAMES = [f"G{i}" for i in range(GENES)]


def section(slide="s", n=40, genes=GENES, seed=0, missing=0.3):
    """A synthetic slide: genes that go together and smoothly over it, entries missing at random."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.divmod(np.arange(n), 7), axis=1) + rng.uniform(-0.2, 0.2, (n, 2))
    level = 3 + np.sin(xy[:, :1]) + np.cos(xy[:, 1:])
    values = level * (1 + np.arange(genes) / genes) + rng.normal(0, 0.1, (n, genes))
    visible = rng.random((n, genes)) > missing
    values = np.where(visible, values, 0).astype(np.float32)
    return Section(slide, values, visible, xy, np.ones(n, np.float32), k=8)


TRAIN, CHECK = [section("a", 24), section("b", 22, seed=1)], [section("c", 21, seed=2)]
PANEL = panel_of(TRAIN, NAMES)


@pytest.fixture(scope="module", params=BOTH, ids=lambda method: method.name)
def fitted(request):
    return request.param(steps=4, every=2).fit(TRAIN, CHECK, PANEL)


def golden_net(case):
    net = ReleasedNet(SIZES[case][0]).eval()
    net.load_state_dict(state(net))
    return net


def state(net, seed=5):
    drawn = weights({key: tuple(value.shape) for key, value in net.state_dict().items()}, seed)
    return {key: torch.from_numpy(value) for key, value in drawn.items()}


@pytest.mark.parametrize("case", SIZES)
def test_released_forward_is_that_of_the_package(case):
    with np.load(GOLDEN) as golden, torch.no_grad():
        expected = golden[case]
        found = golden_net(case)(torch.from_numpy(inputs(case))).numpy()
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, rtol=0, atol=1e-5)


def test_released_completes_256_consecutive_spots_by_the_centre_alone():
    genes, _ = SIZES["narrow"]
    net = golden_net("narrow")
    method = SpackleReleased()
    method.net, method.genes = net, tuple(map(str, range(genes)))
    slide = section(n=300, genes=genes)
    found = method.complete(slide).values
    values = torch.from_numpy(slide.values)
    with torch.no_grad():
        first, rest = net(values[:256, None])[:, 0], net(values[256:, None])[:, 0]
        around = net(values[torch.from_numpy(spackle._around([slide]))[:256]])[:, 0]  # with all 19, as released
    np.testing.assert_allclose(found, np.concatenate([first, rest]), atol=1e-6)
    np.testing.assert_allclose(found[:256], around, atol=1e-5)


def test_released_training_enters_medians_and_takes_them_for_truth():
    asked = {}

    class Spy(torch.nn.Module):
        def forward(self, tokens):
            asked["tokens"] = tokens
            return torch.zeros_like(tokens)

    method = SpackleReleased()
    table = method._table(TRAIN)
    median = [complete_median(s.values, hops_around(slide_graph(s.xy, hex_geometry=False))) for s in TRAIN]
    np.testing.assert_allclose(table.values, np.concatenate(median), rtol=1e-6)
    assert (table.values > 0).all()
    rows = torch.arange(46)
    around = table.index[rows]
    loss = method._loss(Spy(), table, rows, torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 0.0]))
    target, real, tokens = table.values[around], table.visible[around], asked["tokens"]
    assert float(loss) == pytest.approx(float(target.square().mean()), rel=1e-5)  # all tokens, medians too
    assert (tokens[..., 0] == torch.where(real[..., 0], 0.0, target[..., 0])).all()  # only real entries are hidden
    assert (tokens[..., 1] == target[..., 1]).all()
    share = float((tokens[..., 2] != target[..., 2])[real[..., 2]].float().mean())
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("loss", ["full", "hidden"])
def test_described_training_zeroes_what_is_missing_and_scores_measured_centres(loss):
    asked = {}

    class Spy(torch.nn.Module):
        def forward(self, tokens, padding):
            asked["tokens"], asked["padding"] = tokens, padding
            return torch.zeros(len(tokens), GENES)

    method = Spackle(loss=loss)
    table = method._table(TRAIN)
    rows = torch.arange(46)
    found = float(method._loss(Spy(), table, rows, torch.full((GENES,), 0.4)))
    tokens, real = asked["tokens"], table.visible[table.index]
    assert asked["padding"] is None
    assert not tokens[~real].any()
    hidden = (tokens == 0) & real
    assert 0.35 < float(hidden.sum() / real.sum()) < 0.45
    at = hidden[:, 0] if loss == "hidden" else real[:, 0]
    assert found == pytest.approx(float(table.values[rows][at].square().mean()), rel=1e-5)


def test_neighbours_lie_on_the_spots_own_slide():
    table = Spackle()._table(TRAIN)
    assert (table.index[:, 0] == torch.arange(46)).all()
    assert ((table.index < 24) == (torch.arange(46) < 24)[:, None]).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_described_last_layer_for_the_centre_is_the_whole_layer(seed):
    net = seeded(lambda: DescribedNet(8), seed).eval()
    tokens = torch.from_numpy(np.random.default_rng(seed).normal(size=(30, 19, 8)).astype(np.float32))
    padding = torch.arange(19).expand(30, 19) >= torch.randint(1, 20, (30, 1))
    whole = torch.nn.Sequential(*net.layers)
    with torch.no_grad():
        np.testing.assert_allclose(net(tokens), net.out_linear(whole(net.linear(tokens))[:, 0]), atol=1e-5)
        x = net.linear(tokens)
        for layer in net.layers:
            x = layer(x, src_key_padding_mask=padding)
        np.testing.assert_allclose(net(tokens, padding), net.out_linear(x[:, 0]), atol=1e-5)


def test_described_prediction_does_not_depend_on_the_batch():
    net = DescribedNet(128).eval()
    net.load_state_dict(state(net))
    slide = section(n=300, genes=128)
    method = Spackle()
    method.net, method.genes = net, tuple(map(str, range(128)))
    found = method.complete(slide).values
    tokens = torch.from_numpy(slide.values)[torch.from_numpy(spackle._around([slide]))]
    order = np.random.default_rng(0).permutation(300)
    with torch.no_grad():
        batch = net(tokens[:256]).numpy()
        alone = np.concatenate([net(tokens[i : i + 1]) for i in range(0, 256, 16)])
    np.testing.assert_allclose(alone, batch[::16], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[:256], batch, rtol=0, atol=2e-5)
    shuffled = dataclasses.replace(
        slide,
        **{name: getattr(slide, name)[order] for name in ("values", "visible", "xy", "library")},
    )
    np.testing.assert_allclose(method.complete(shuffled).values, found[order], rtol=0, atol=2e-5)


def test_described_prediction_depends_on_neighbours_and_on_no_one_else():
    method = Spackle(steps=1).fit(TRAIN, [], PANEL)
    slide = section(n=80, seed=5)
    before = method.complete(slide).values
    changed = slide.values.copy()
    changed[79] *= 2
    after = method.complete(dataclasses.replace(slide, values=changed)).values
    near = (spackle._around([slide]) == 79).any(axis=1)
    assert (np.abs(after - before).max(axis=1) > 1e-4)[near].all()
    np.testing.assert_allclose(after[~near], before[~near], atol=2e-5)


def test_protocol_and_repeatability(fitted):
    assert isinstance(fitted, Completer)
    assert fitted.trained["best_mse"] > 0
    slide = section("new", 33, seed=7)
    once, again = fitted.complete(slide), fitted.complete(slide)
    assert once.values.shape == (33, GENES)
    assert once.values.dtype == np.float32
    assert once.spread is None
    np.testing.assert_array_equal(once.values, again.values)
    other = type(fitted)(steps=4, every=2).fit(TRAIN, CHECK, PANEL)
    np.testing.assert_array_equal(other.complete(slide).values, once.values)


@pytest.mark.parametrize("method", BOTH)
def test_training_gets_better_at_hidden_entries(method):
    scores = {}
    fit = method(steps=40, every=20, learning_rate=1e-2).fit(
        TRAIN, CHECK, PANEL, progress=lambda step, _, figures: scores.update({step: figures.get("score")})
    )
    assert scores[40] < 0.5 * np.mean(CHECK[0].values[CHECK[0].visible] ** 2)
    assert fit.trained["best_mse"] == min(score for score in scores.values() if score is not None)


@pytest.mark.parametrize("method", BOTH)
def test_a_fit_that_was_cut_off_goes_on_to_the_same_bits(method, tmp_path, monkeypatch):
    run = spackle.run
    monkeypatch.setattr(spackle, "run", lambda *args, **options: run(*args, save_seconds=0.0, **options))
    whole = method(steps=4, every=2).fit(TRAIN, CHECK, PANEL)

    def halt(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(steps=4, every=2).fit(TRAIN, CHECK, PANEL, checkpoint=tmp_path, progress=halt)
    steps = []
    resumed = method(steps=4, every=2).fit(
        TRAIN, CHECK, PANEL, checkpoint=tmp_path, progress=lambda step, *_: steps.append(step)
    )
    assert steps == [4]
    for key, value in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[key], value)
    with pytest.raises(InputError, match="with other data"):
        method(steps=4, every=2).fit(TRAIN[::-1], CHECK, PANEL, checkpoint=tmp_path)


def test_saved_and_loaded_it_predicts_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "fit")
    assert {p.name for p in (tmp_path / "fit").iterdir()} == {"card.json", "arrays.safetensors"}
    loaded = type(fitted).load(tmp_path / "fit", NAMES)
    assert (loaded.settings, loaded.genes, loaded.trained) == (fitted.settings, fitted.genes, fitted.trained)
    np.testing.assert_array_equal(loaded.complete(CHECK[0]).values, fitted.complete(CHECK[0]).values)
    for genes, reason in ((NAMES[:-1], "also has G5"), (NAMES[::-1], "another order"), ([*NAMES, "X"], "X is not in")):
        with pytest.raises(InputError, match=reason):
            type(fitted).load(tmp_path / "fit", genes)
    other = BOTH[BOTH[0] is type(fitted)]
    with pytest.raises(InputError, match="load it by its name"):
        other.load(tmp_path / "fit")


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("n", [0, 1, 5, 18])
def test_slides_of_fewer_than_19_spots(method, n):
    few = section("few", n)
    fit = method(steps=2, every=1).fit([TRAIN[0], few], [few, CHECK[0]], PANEL)
    found = fit.complete(few).values
    assert found.shape == (n, GENES)
    assert np.isfinite(found).all()


def test_padding_takes_no_part():
    few = section("few", 5)
    table = Spackle()._table([TRAIN[0], few])
    assert table.padding is not None
    assert table.padding.sum(axis=1).tolist() == [0] * 24 + [14] * 5
    method = Spackle()
    method.net, method.genes = seeded(lambda: DescribedNet(GENES), 0).eval(), tuple(NAMES)
    rows = torch.arange(24, 29)
    with torch.no_grad():
        padded = method.net(table.values[table.index[rows]], table.padding[rows])
    np.testing.assert_allclose(method.complete(few).values, padded, atol=1e-5)
    assert spackle._around([TRAIN[0], few]).min() == -1
    assert SpackleReleased()._table([few]).index.min() == 0  # the released variant repeats the spot


@pytest.mark.parametrize("method", BOTH)
def test_a_gene_missing_on_a_slide_and_spots_without_anything(method):
    slide = section("holes", 30)
    visible = slide.visible.copy()
    visible[:, 2] = False
    visible[4:7] = False
    slide = dataclasses.replace(slide, values=np.where(visible, slide.values, 0), visible=visible)
    blank = dataclasses.replace(slide, values=slide.values * 0, visible=visible & False)
    fit = method(steps=2, every=1).fit([TRAIN[0], slide, blank], [slide, blank], PANEL)
    assert fit.trained["best_mse"] > 0
    assert "best_mse" not in method(steps=1).fit([TRAIN[0]], [blank], PANEL).trained  # nothing to choose on
    for one in (slide, blank):
        assert np.isfinite(fit.complete(one).values).all()


@pytest.mark.parametrize("method", BOTH)
def test_input_that_cannot_be_used_is_refused(method):
    made = method(steps=1)
    with pytest.raises(InputError, match=r"spackle.* is not fitted"):
        made.complete(TRAIN[0])
    with pytest.raises(InputError, match="not fitted"):
        made.save(Path("nowhere"))
    with pytest.raises(InputError, match="no training spot"):
        made.fit([], CHECK, PANEL)
    with pytest.raises(InputError, match="slide wide has 7 genes, the completer's panel 6"):
        made.fit([section("wide", genes=7)], CHECK, PANEL)
    visible = TRAIN[0].visible & (np.arange(GENES) != 3)
    without = dataclasses.replace(TRAIN[0], visible=visible, values=np.where(visible, TRAIN[0].values, 0))
    with pytest.raises(InputError, match="gene G3 is measured in no training spot"):
        made.fit([without], CHECK, PANEL)
    with pytest.raises(InputError, match="NaN"):
        made.fit([dataclasses.replace(TRAIN[0], values=TRAIN[0].values * np.nan)], CHECK, PANEL)
    made.fit(TRAIN, [], PANEL)
    with pytest.raises(InputError, match="slide wide has 7 genes"):
        made.complete(section("wide", genes=7))
    with pytest.raises(InputError, match="no such setting"):
        method(dropout=0.5)
    with pytest.raises(InputError, match="loss 'some' is not one of"):
        method(loss="some")
    if method is SpackleReleased:
        with pytest.raises(InputError, match="loss 'hidden' is not one of full"):
            method(loss="hidden")
    with pytest.raises(InputError, match="unknown device 'tpu-9x'"):
        method(device="tpu-9x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="refusal where there is no GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="sees no CUDA GPU"):
        Spackle(device="cuda")


def test_a_damaged_fit_is_refused(tmp_path):
    Spackle(steps=1).fit(TRAIN, [], PANEL).save(tmp_path / "fit")
    card = tmp_path / "fit" / "card.json"
    text = card.read_text()
    card.write_text(text.replace('"steps": 1,', '"stepz": 1,', 1))
    with pytest.raises(InputError, match="has no such setting"):
        Spackle.load(tmp_path / "fit")


def lightning(genes=32, **more):
    """State dict as the released code's Lightning module has it, dead keys included."""
    net = ReleasedNet(genes)
    dead = torch.nn.TransformerEncoderLayer(genes, 1).state_dict()
    found = {f"model.{key}": value for key, value in state(net).items()}
    return found | {f"model.encoder_layer.{key}": value for key, value in dead.items()} | more


def test_a_released_checkpoint_is_read(tmp_path):
    path = tmp_path / "epoch=24-step=1000.ckpt"
    torch.save({"epoch": 24, "state_dict": lightning(), "loops": {}, "optimizer_states": [{}]}, path)
    method = SpackleReleased.from_checkpoint(path, [str(i) for i in range(32)])
    slide = section(n=40, genes=32)
    with torch.no_grad():
        expected = golden_net("narrow")(torch.from_numpy(slide.values[:, None]))[:, 0]
    np.testing.assert_array_equal(method.complete(slide).values, expected)
    method.save(tmp_path / "fit")
    assert SpackleReleased.load(tmp_path / "fit").genes == method.genes
    torch.save({key.removeprefix("model."): value for key, value in lightning().items()}, path)
    assert read_released(path, 32).linear.weight.shape == (32, 32)


class NotATensor:
    pass


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"state_dict": lightning(), "callbacks": NotATensor()}, "or would run code if it were read"),
        ([1, 2], "holds no state dict"),
        ({"state_dict": {"model.linear.weight": 3}}, "holds no state dict"),
        ({"state_dict": lightning(**{"model.linear_vis.weight": torch.zeros(2)})}, "linear_vis.weight does not fit"),
        ({"state_dict": lightning(16)}, "for another panel: it has 16 genes, this one 32"),
        ({"state_dict": lightning(**{"model.out_linear.bias": torch.zeros(2)})}, "the shapes of its weights"),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(tmp_path, what, reason):
    path = tmp_path / "model.ckpt"
    torch.save(what, path)
    with pytest.raises(InputError, match=reason) as refused:
        read_released(path, 32)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    with pytest.raises(InputError, match="is not there"):
        read_released(path, 32)
    with pytest.raises(InputError, match="damaged"):
        read_released(tmp_path, 32)
    for content in (b"", b"text", pickle.dumps(NotATensor())):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged, or would run code"):
            read_released(path, 32)


def test_batches_are_shuffled_epochs_that_drop_what_is_left():
    epoch = np.concatenate([batch_rows(10, 4, step, 0) for step in (0, 1)])
    assert len(set(epoch.tolist())) == 8
    assert not np.array_equal(batch_rows(10, 4, 2, 0), batch_rows(10, 4, 0, 0))
    np.testing.assert_array_equal(batch_rows(10, 4, 3, 0), batch_rows(10, 4, 3, 0))
    assert sorted(batch_rows(3, 4, 7, 0)) == [0, 1, 2]
