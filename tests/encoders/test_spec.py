from __future__ import annotations

from pathlib import Path

import pytest

from spared_fm.encoders.offline import VARIABLE
from spared_fm.encoders.registry import row
from spared_fm.encoders.spec import EncoderSpec, from_settings, native_patch, resolve
from spared_fm.errors import InputError
from tests.encoders.own_rows import write

SMALL = "timm:vit_small_patch16_224"


@pytest.fixture(autouse=True)
def no_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("stain-bank", "none"),
        ("colour-stats", "none"),
        ("timm:vit_small_patch16_224", "random"),  # timm's convention: no tag, no trained weights
        ("timm:vit_small_patch16_224.augreg_in21k_ft_in1k", "pretrained"),
        ("uni", "pretrained"),
        ("shufflenetv2-x0.5", "pretrained"),  # a point in a registry name is no tag
    ],
)
def test_default_weights(name: str, weights: str):
    spec = resolve(name)
    assert spec == EncoderSpec(name, weights)
    assert spec.is_default


def test_other_weights_are_not_the_default(tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert not resolve("timm:vit_small_patch16_224", "pretrained").is_default
    spec = resolve("timm:vit_small_patch16_224", tmp_path / "w.safetensors")
    assert not spec.is_default
    assert Path(spec.weights).is_absolute()


@pytest.mark.parametrize("name", ["unii", "UNI", "", "timm:", "timm:vit_smal_patch16_224", "hf:x"])
def test_unknown_encoder(name: str):
    with pytest.raises(InputError, match="unknown encoder"):
        resolve(name)


def test_a_close_name_is_suggested():
    with pytest.raises(InputError, match="timm:vit_small_patch16_224"):
        resolve("timm:vit_smal_patch16_224")


def test_weights_that_make_no_sense(tmp_path: Path):
    with pytest.raises(InputError, match="takes no --weights"):
        resolve("stain-bank", "random")
    with pytest.raises(InputError, match="no such weights file"):
        resolve("timm:vit_small_patch16_224", tmp_path / "absent.pth")


def test_a_row_of_the_users_own(tmp_path: Path):
    path = write(tmp_path, mine={}, fine={"mpp": [2.0], "px": 100})
    spec = resolve("mine", registry=path)
    assert (spec.weights, spec.is_default, spec.row.title) == ("pretrained", True, "Tiny")
    assert native_patch(spec) == (16.0, 64)
    assert native_patch(resolve("fine", registry=path)) == (200.0, 100)
    with pytest.raises(InputError, match="unknown encoder 'mine'"):
        resolve("mine")


def test_the_patch_a_name_stands_for():
    assert native_patch(resolve("stain-bank")) == native_patch(resolve(SMALL)) == (112.0, 224)
    conch = row("conch")
    assert native_patch(resolve("conch")) == (conch.px * conch.mpp[0], conch.px)
    assert resolve(SMALL).row is None


@pytest.mark.parametrize("option", [{"views": "dihedral"}, {"tokens": 7}, {"precision": "bfloat16"}])
def test_options_make_another_recipe(option: dict):
    spec = resolve("uni", **option)
    assert not spec.is_default
    assert spec != resolve("uni")
    assert from_settings(spec.as_settings()) == spec


def test_the_encoders_own_precision_is_no_option():
    assert resolve("uni", precision=row("uni").compute_dtype) == resolve("uni", precision=None) == resolve("uni")
    assert resolve(SMALL, precision="float32") == resolve(SMALL)
    assert resolve("stain-bank", precision="float32") == resolve("stain-bank")


def test_settings_say_what_is_not_plain_and_bring_the_encoder_back(tmp_path: Path):
    assert resolve(SMALL, seed=3).as_settings() == {"encoder_argument": SMALL, "seed": 3}
    path = write(tmp_path, mine={})
    spec = resolve("mine", "random", seed=2, views="dihedral-mean", precision="float16", registry=path)
    settings = spec.as_settings()
    assert settings == {
        "encoder_argument": "mine",
        "seed": 2,
        "views": "dihedral-mean",
        "precision": "float16",
        "registry": str(path),
    }
    assert from_settings({**settings, "batch_size": 32}, "random") == spec


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("uni", {"views": "all"}, "views 'all' are not identity, dihedral-mean, dihedral"),
        ("uni", {"precision": "float8"}, "precision 'float8' is not float32, float16, bfloat16"),
        ("uni", {"tokens": -1}, "at least one token"),
        ("uni", {"tokens": 7, "views": "dihedral"}, "the view 'identity' only"),
        ("stain-bank", {"tokens": 7}, "stain-bank has no grid"),
        ("shufflenetv2-x0.5", {"tokens": 7}, "has no grid"),
        ("stain-bank", {"precision": "float16"}, "computes in float32 only"),
    ],
)
def test_options_that_make_no_sense(name: str, option: dict, words: str):
    with pytest.raises(InputError, match=words):
        resolve(name, **option)
