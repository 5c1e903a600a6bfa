from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spared_fm.errors import InputError
from spared_fm.targets.completion.training import fingerprint, one_cycle, seeded, train

REPOSITORY = Path(__file__).resolve().parents[3]
X = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
Y = X[:, :1] * 2 - X[:, 1:2]


def problem(seed=0):
    """A regression with dropout and random batches, so that both generators matter."""
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)), seed)

    def loss(step, rng):
        rows = torch.from_numpy(rng.integers(0, 64, 16))
        return (net(X[rows]) - Y[rows]).square().mean()

    return net, loss, lambda: float((net(X) - Y).square().mean())


def run(net, loss, validate, **options):
    options = {"steps": 60, "every": 10, "seed": 3, "save_seconds": 0.0} | options
    return train(net, loss, validate, optimizer=torch.optim.Adam(net.parameters(), lr=0.02), **options)


def weights(net):
    return torch.cat([value.flatten() for value in net.state_dict().values()])


def test_it_learns_keeps_the_best_weights_and_leaves_the_generator_alone():
    net, loss, validate = problem()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    history = run(net, loss, validate)
    assert torch.equal(torch.rand(3), expected)
    assert not net.training
    assert [step for step, _ in history.scores] == [10, 20, 30, 40, 50, 60]
    assert len(history.losses) == 6
    assert history.best_score == min(score for _, score in history.scores)
    assert history.best_score < 0.5 * history.scores[0][1]
    with torch.no_grad():
        assert validate() == history.best_score


def test_the_best_of_a_training_that_gets_worse_is_kept():
    net, loss, _ = problem()
    scores, kept = iter([3.0, 1.0, 2.0, 1.0, 5.0, 4.0]), {}

    def validate():
        kept[len(kept)] = weights(net).clone()
        return next(scores)

    assert run(net, loss, validate).best_step == 20  # of two equal ones the first
    assert torch.equal(weights(net), kept[1])


def test_patience_counts_steps_without_a_better_score():
    net, loss, _ = problem()
    scores = iter([3.0, 1.0, 2.0, 1.5, 0.0])
    history = run(net, loss, lambda: next(scores), patience=20)
    assert (history.step, history.best_step) == (40, 20)


def test_without_validation_the_last_weights_are_kept():
    net, loss, _ = problem()
    history = run(net, loss, None, steps=7)
    assert (history.step, history.best_step, history.scores) == (7, 7, [])
    assert math.isnan(history.best_score)


def test_seed_decides_the_result():
    found = []
    for seed in (0, 0, 1):
        net, loss, validate = problem()
        run(net, loss, validate, seed=seed)
        found.append(weights(net))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_progress_tells_each_step_with_its_loss():
    told = []
    run(*problem(), steps=20, progress=lambda *what: told.append(what))
    assert [(step, steps) for step, steps, _ in told] == [(i, 20) for i in range(1, 21)]
    assert set(told[8][2]) == {"loss"}
    assert set(told[9][2]) == {"loss", "score", "best"}


class Halt(Exception):
    pass


@pytest.mark.parametrize("at", [5, 20, 33])
def test_a_training_cut_off_anywhere_goes_on_to_the_same_bits(tmp_path, at):
    whole, loss, validate = problem()
    expected = run(whole, loss, validate, rate=one_cycle(60))

    def halt(step, *_):
        if step == at:
            raise Halt

    net, loss, validate = problem()
    checkpoint = tmp_path / "new" / "training.pt"
    with pytest.raises(Halt):
        run(net, loss, validate, rate=one_cycle(60), checkpoint=checkpoint, progress=halt)
    net, loss, validate = problem(seed=9)  # first weights must not matter any more
    steps = []
    found = run(
        net, loss, validate, rate=one_cycle(60), checkpoint=checkpoint, progress=lambda step, *_: steps.append(step)
    )
    assert steps[0] == at + 1
    assert torch.equal(weights(net), weights(whole))
    assert found == expected
    again, loss, validate = problem()
    assert run(again, loss, None, rate=one_cycle(60), checkpoint=checkpoint) == expected  # finished: no step is taken
    assert torch.equal(weights(again), weights(whole))


CHILD = """
import sys, time, torch
from pathlib import Path
from tests.targets.completion.test_training import problem, run
torch.set_num_threads(1)
net, loss, validate = problem()
def slow(step, *_):
    print(step, flush=True)
    time.sleep(0.01)
run(net, loss, validate, steps=100, checkpoint=Path(sys.argv[1]), progress=slow)
"""


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    checkpoint = tmp_path / "training.pt"
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(checkpoint)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if int(line) >= 15:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net, loss, validate = problem(seed=9)
        steps = []
        options = {"steps": 100, "save_seconds": 1e6}
        run(net, loss, validate, checkpoint=checkpoint, progress=lambda step, *_: steps.append(step), **options)
        whole, loss, validate = problem()
        run(whole, loss, validate, **options)
    finally:
        torch.set_num_threads(threads)
    assert 15 <= steps[0] < 100
    assert torch.equal(weights(net), weights(whole))


def test_a_checkpoint_is_not_written_more_often_than_asked(tmp_path):
    checkpoint = tmp_path / "training.pt"
    seen = []
    run(
        *problem(),
        checkpoint=checkpoint,
        save_seconds=1e6,
        progress=lambda step, *_: seen.append((step, checkpoint.exists())),
    )
    assert seen == [(i, i == 60) for i in range(1, 61)]
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    checkpoint = tmp_path / "training.pt"
    run(*problem(), checkpoint=checkpoint, settings={"lr": 0.02})
    for options, name in (({"seed": 4}, "seed"), ({"steps": 61}, "steps"), ({"settings": {"lr": 1.0}}, "lr")):
        with pytest.raises(InputError, match=f"with other {name}: remove it") as refused:
            run(*problem(), checkpoint=checkpoint, **({"settings": {"lr": 0.02}} | options))
        assert "\n" not in str(refused.value)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(InputError, match="is not a training checkpoint"):
        run(*problem(), checkpoint=tmp_path / "list.pt")
    net = nn.Linear(2, 1)
    with pytest.raises(InputError, match="of another model"):
        run(net, None, None, checkpoint=checkpoint, settings={"lr": 0.02})


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    checkpoint = tmp_path / "training.pt"
    run(*problem(), steps=5, checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint", json.dumps({}).encode()):
        checkpoint.write_bytes(damaged)
        with pytest.raises(InputError, match=r"is damaged, .*: remove it to start anew") as refused:
            run(*problem(), steps=5, checkpoint=checkpoint)
        assert "\n" not in str(refused.value)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "training.pt")
    with pytest.raises(InputError, match="remove it"):
        run(*problem(), checkpoint=tmp_path / "training.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["loss", "score"])
def test_a_training_that_diverges_is_stopped(what):
    net, loss, validate = problem()
    bad = {"loss": (lambda *_: loss(*_) * math.nan, validate), "score": (loss, lambda: math.inf)}[what]
    with pytest.raises(InputError, match=rf"{what} is (nan|inf) at step .*: lower the learning rate"):
        run(net, *bad)


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        run(*problem(), checkpoint=tmp_path / "file" / "training.pt")


def test_one_cycle_is_that_of_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50, cycle_momentum=False)
    rate = one_cycle(50)
    for step in range(50):
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        if step < 49:
            reference.step()
    assert one_cycle(1)(0) > 0


def test_the_schedule_scales_the_learning_rate():
    net = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    start = float(net.weight.detach())
    train(net, lambda *_: net.weight.sum(), None, optimizer=optimizer, steps=2, rate=lambda step: [0.1, 0.2][step])
    assert float(net.weight.detach()) == pytest.approx(start - 0.5 * 0.3)


def test_fingerprint_knows_type_shape_and_order():
    a = np.arange(6.0)
    different = [(a,), (a.reshape(2, 3),), (a.astype(np.float32),), (a[::-1],), (a, a), (a.view(np.int64),)]
    assert len({fingerprint(*arrays) for arrays in different}) == len(different)
    assert fingerprint(a.reshape(2, 3).T) == fingerprint(np.ascontiguousarray(a.reshape(2, 3).T))
    assert fingerprint(a > 2, np.zeros((0, 3)))
