"""Every row of the registry gives vectors, and none of it touches the network (builds without memory: test_architectures)."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spared_fm.encoders.builder import build
from spared_fm.encoders.offline import VARIABLE
from spared_fm.encoders.registry import Row, rows
from spared_fm.encoders.spec import resolve
from tests.encoders.own_rows import write

QUICK, LARGEST = 25_000_000, 120_000_000


def by_size() -> list[Any]:
    """Rows that fit a test machine; quick are the small ones, one of those that build the same."""
    cases, seen = [], set()
    for row in rows().values():
        builds = (row.architecture, str(row.build), str(row.head))
        slow = row.parameters > QUICK or builds in seen
        seen.add(builds)
        if row.parameters < LARGEST:
            cases.append(pytest.param(row, id=row.name, marks=[pytest.mark.full] if slow else []))
    return cases


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.delenv(VARIABLE, raising=False)


def patches(px: int, n: int = 2) -> np.ndarray:
    """Pink and violet blots."""
    rng = np.random.default_rng(0)
    blots = np.kron(rng.integers(0, 2, (n, 8, 8, 1)), np.ones((1, px // 8 + 1, px // 8 + 1, 1)))[:, :px, :px]
    colours = blots * [230, 180, 210] + (1 - blots) * [110, 70, 150] + rng.normal(0, 8, (n, px, px, 1))
    return np.clip(colours, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("row", by_size())
def test_seeded_random_weights_give_vectors(row: Row):
    for name in row.requires:
        if importlib.util.find_spec(name.split()[0]) is None:
            pytest.skip(f"{name} is not installed")
    encoder = build(resolve(row.name, None if row.loader == "builtin" else "random"))
    found = encoder.encode(patches(row.px))
    assert found.shape == (2, row.dim) == (2, encoder.dim)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert not np.array_equal(found[0], found[1])
    assert (encoder.pooling, encoder.prefix_tokens) == (
        ("statistics", 0) if row.loader == "builtin" else (row.pooling, row.prefix_tokens)
    )
    said = encoder.transform.as_data()
    assert (said["mean"], said["std"]) == (list(row.mean), list(row.std))
    if row.loader != "builtin":
        assert (said["resize"] or 0, said["crop"], said["interpolation"]) == (row.resize, row.crop, row.interpolation)


def test_a_row_of_the_users_own_needs_nothing_else(tmp_path: Path):
    path = write(tmp_path, mine={"pooling": "cls+mean", "dim": 384})
    encoder = build(resolve("mine", "random", registry=path))
    assert encoder.encode(patches(64)).shape == (2, 384)
    assert encoder.transform.as_data()["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("name", ["resnet50-layer3-tv", "densenet121", "shufflenetv2-x0.5", "dinov3-s16"])
def test_weights_saved_and_loaded_are_the_same(tmp_path: Path, name: str):
    first = build(resolve(name, "random", seed=4))
    px = first.row.px
    state = getattr(first.module, "core", first.module).state_dict()
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        again = build(resolve(name, tmp_path / file))
        assert again.weights == first.weights
        np.testing.assert_array_equal(again.encode(patches(px)), first.encode(patches(px)))
    assert build(resolve(name, "random", seed=5)).weights != first.weights
