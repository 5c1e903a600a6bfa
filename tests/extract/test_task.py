from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from spared_fm.encoders.builder import Encoder, build
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from spared_fm.extract import task as tasks
from spared_fm.extract.plan import make_plan
from spared_fm.extract.task import encode_chunk, keep
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.study.api import Study

SLIDE = "synthetic_p1_s1"


class Stub(torch.nn.Module):
    """Mean colour times a factor: enough to see which pixels a row came from."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) * self.factor


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setattr(tasks, "_encoders", {})  # the stub must not be there for tests that come after
    return dataclasses.replace(build(resolve("stain-bank")), module=Stub(), dim=3, weights="stub/1")


def test_rows_are_the_patches_of_their_spots(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    keep(encoder)
    plan = make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), chunk_rows=10, batch_size=4)
    done = [encode_chunk(task) for task in reversed(plan.tasks)]
    adata = study.slide(SLIDE)
    assert sum(item.patches for item in done) == adata.n_obs
    record = study.layout.attributes(study.layout.slide(SLIDE))
    assert record is not None
    with open_image(record["image"]["path"]) as image:
        patches = PatchReader(image, record["mpp"], PatchSpec()).read(adata.obsm["spatial"])
    expected = (patches.astype(np.float32) / 255).mean(axis=(1, 2))
    np.testing.assert_allclose(adata.obsm["stain-bank"], expected, atol=2e-3)  # float16


def test_a_finished_chunk_is_not_computed_again(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    keep(encoder)
    task = make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), chunk_rows=10).tasks[0]
    assert encode_chunk(task).patches == 10
    keep(dataclasses.replace(encoder, module=Stub(5.0)))
    assert encode_chunk(task).patches == 0
    assert study.features(SLIDE, "stain-bank", np.arange(10)).max() <= 1.0


def test_a_worker_with_other_weights_is_stopped(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    task = make_plan(study.layout, [SLIDE], [encoder], PatchSpec()).tasks[0]
    keep(dataclasses.replace(encoder, weights="stub/2"))
    with pytest.raises(InputError, match="built stain-bank with weights stub/2"):
        encode_chunk(task)


def test_an_encoder_that_gives_nan_is_stopped(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    bad = dataclasses.replace(encoder, module=Stub(float("nan")))
    keep(bad)
    task = make_plan(study.layout, [SLIDE], [bad], PatchSpec()).tasks[0]
    with pytest.raises(InputError, match="NaN or infinity"):
        encode_chunk(task)


def test_overflow_of_float16_becomes_float32(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    loud = dataclasses.replace(encoder, module=Stub(1e6))
    keep(loud)
    [row] = study.encode("stain-bank")
    assert row["key"].startswith("stain-bank@")
    assert "float32" in row["warnings"][0]
    found = study.features(SLIDE, "stain-bank")  # the array that could not be finished is gone
    assert found.dtype == np.float32
    assert found.max() > 65504


def test_workers_keep_the_encoders_of_a_run_and_no_more(encoder: Encoder):
    for seed in range(tasks.MOST_ENCODERS + 3):
        tasks.get(resolve("stain-bank", None, seed=seed), "cpu")
    assert len(tasks._encoders) == tasks.MOST_ENCODERS


def test_several_encoders_share_one_reading(
    make_study: Callable[..., Study], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    study, alone = make_study(), make_study("alone")
    other = dataclasses.replace(
        encoder, spec=resolve("stain-bank", seed=9), module=Stub(3.0), weights="stub/3", versioned_name="stub/3"
    )
    read = []
    whole = PatchReader.read
    monkeypatch.setattr(PatchReader, "read", lambda self, xy: read.append(len(xy)) or whole(self, xy))
    for item in (encoder, other):
        keep(item)
    both = make_plan(study.layout, [SLIDE], [encoder, other], PatchSpec(), keys=["a", "b"], chunk_rows=10)
    for task in both.tasks:
        encode_chunk(task)
    n = study.slide(SLIDE).n_obs
    assert sum(read) == n == both.patches
    for item, key in ((encoder, "a"), (other, "b")):
        for task in make_plan(alone.layout, [SLIDE], [item], PatchSpec(), keys=[key], chunk_rows=10).tasks:
            encode_chunk(task)
        np.testing.assert_array_equal(study.features(SLIDE, key), alone.features(SLIDE, key))


def test_only_the_encoder_that_lacks_a_chunk_computes_it(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    other = dataclasses.replace(encoder, spec=resolve("stain-bank", seed=9), versioned_name="stub/9")
    for item in (encoder, other):
        keep(item)
    for task in make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), keys=["a"], chunk_rows=10).tasks[:2]:
        encode_chunk(task)
    plan = make_plan(study.layout, [SLIDE], [encoder, other], PatchSpec(), keys=["a", "b"], chunk_rows=10)
    assert [[key for key, _ in task.jobs] for task in plan.tasks[:3]] == [["b"], ["b"], ["a", "b"]]
    assert plan.done == 2


def test_unreadable_patches_are_absent_rows_and_change_no_other_row(
    make_study: Callable[..., Study], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    study, clean = make_study(), make_study("clean")
    keep(encoder)
    for task in make_plan(clean.layout, [SLIDE], [encoder], PatchSpec(), chunk_rows=10, batch_size=4).tasks:
        encode_chunk(task)
    bad = study.slide(SLIDE).obsm["spatial"][[3, 17]]
    whole = PatchReader.read_one

    def read_one(self: PatchReader, x: float, y: float) -> np.ndarray:
        if (np.abs(bad - [x, y]).sum(axis=1) < 1e-6).any():
            raise InputError("tile 5 can't be decoded")
        return whole(self, x, y)

    monkeypatch.setattr(PatchReader, "read_one", read_one)
    monkeypatch.setattr(PatchReader, "read", lambda self, xy: np.stack([self.read_one(*point) for point in xy]))
    done = [
        encode_chunk(task)
        for task in make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), chunk_rows=10, batch_size=4).tasks
    ]
    assert {row: reason for item in done for row, reason in item.absent.items()} == dict.fromkeys(
        (3, 17), "tile 5 can't be decoded"
    )
    found, expected = study.features(SLIDE, "stain-bank"), clean.features(SLIDE, "stain-bank")
    assert np.isnan(found[[3, 17]]).all()
    others = np.setdiff1d(np.arange(len(found)), [3, 17])
    np.testing.assert_array_equal(found[others], expected[others])
