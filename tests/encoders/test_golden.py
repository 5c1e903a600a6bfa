from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spared_fm.encoders.builder import Encoder, build
from spared_fm.encoders.golden import (
    DIFFERS,
    SAME,
    SHIPPED,
    TOLERANCE,
    UNKNOWN,
    compare,
    golden_patch,
    load,
    record,
    vectors,
)
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from tests.encoders.own_rows import write
from tests.encoders.record_golden import names, spec_of

ROW: dict[str, Any] = {"pooling": "cls+mean", "dim": 384, "compute_dtype": "float16", "resize": 64}


def tiny(folder: Path, **changes: Any) -> Encoder:
    return build(resolve("tiny", "random", registry=write(folder, tiny={**ROW, **changes})))


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [record(tiny(tmp_path))]


SUMS, PIXEL = [13486315, 10203811, 14379722], [149, 162, 150]


def test_the_patches_never_change():
    patch = golden_patch(280)
    assert (patch.shape, patch.dtype) == ((280, 280, 3), np.uint8)
    assert [int(patch[..., c].astype(np.int64).sum()) for c in range(3)] == SUMS
    assert patch[17, 201].tolist() == PIXEL
    for turned in (patch[::-1], patch[:, ::-1], patch.transpose(1, 0, 2), patch[..., ::-1]):
        assert np.abs(turned.astype(int) - patch).mean() > 10  # no symmetry hides a turn, a mirror or BGR


def test_an_encoder_gives_its_own_vector(tmp_path: Path, records: list[dict[str, Any]]):
    found = compare(tiny(tmp_path), json.loads(json.dumps(records)))
    assert found.status == SAME
    assert found.error == 0
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.4, 0.3]},
        {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        {"resize": 0},  # crops the wider patch, where it should be resized
        {"resize": 73},  # resizes beyond the crop
        {"interpolation": "bilinear"},
        {"pooling": "cls", "dim": 192},
        {"prefix_tokens": 1},  # registers leak into the mean
        {"prefix_tokens": 4},  # one register does
    ],
    ids=str,
)
def test_another_transform_or_pooling_differs(tmp_path: Path, records: list[dict[str, Any]], changes: dict[str, Any]):
    found = compare(tiny(tmp_path, **changes), records)
    assert found.status == DIFFERS
    assert found.error is None or found.error > TOLERANCE["float16"]


def test_the_mean_before_the_class_token_differs(tmp_path: Path, records: list[dict[str, Any]]):
    encoder = tiny(tmp_path)
    pool = encoder.pool
    swapped = dataclasses.replace(encoder, pool=lambda tokens: torch.roll(pool(tokens), 192, dims=1))
    assert compare(swapped, records).status == DIFFERS


def test_bfloat16_is_not_float16(tmp_path: Path, records: list[dict[str, Any]]):
    assert compare(tiny(tmp_path, compute_dtype="bfloat16"), records).status == DIFFERS
    assert compare(tiny(tmp_path, compute_dtype="float32"), records).status == SAME  # float16 is near enough to it


def test_nan_and_other_weights(tmp_path: Path, records: list[dict[str, Any]]):
    encoder = tiny(tmp_path)
    bad = dataclasses.replace(encoder, pool=lambda tokens: encoder.pool(tokens) * float("nan"))
    assert compare(bad, records).status == DIFFERS
    other = build(resolve("tiny", "random", seed=1, registry=write(tmp_path, tiny=ROW)))
    assert compare(other, records).status == UNKNOWN
    assert compare(dataclasses.replace(other, spec=encoder.spec), records).status == DIFFERS


@pytest.mark.parametrize(
    "name", ["stain-bank", "colour-stats", "timm:vit_small_patch16_224", "kaiko-s16", "resnet50-layer3-tv"]
)
def test_what_ships_is_met(name: str):
    found = compare(build(spec_of(name)), load(SHIPPED)[name])
    assert found.status == SAME, found.text


@pytest.mark.full
@pytest.mark.parametrize("name", names())
def test_all_that_ships_is_met(name: str):
    found = compare(build(spec_of(name)), load(SHIPPED)[name])
    assert found.status == SAME, found.text


def test_every_small_row_ships_one():
    assert sorted(load(SHIPPED)) == sorted(names())


def test_damaged_files(tmp_path: Path):
    assert load(tmp_path / "none.json") == {}
    for words in ("{", "[]", '{"uni": [{"weights": "x"}]}', '{"uni": {}}'):
        (tmp_path / "golden.json").write_text(words)
        with pytest.raises(InputError, match=r"golden\.json.*record them again"):
            load(tmp_path / "golden.json")


def test_both_sizes_are_used(tmp_path: Path):
    found = vectors(tiny(tmp_path))
    assert found.shape == (2, 384)
    assert not np.allclose(found[0], found[1], rtol=1e-2)
