from __future__ import annotations

from pathlib import Path

import pytest

from spared_fm.encoders.spec import EncoderSpec, resolve
from spared_fm.errors import InputError


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("stain-bank", "none"),
        ("timm:vit_small_patch16_224", "random"),  # timm's convention: no tag, no trained weights
        ("timm:vit_small_patch16_224.augreg_in21k_ft_in1k", "pretrained"),
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


@pytest.mark.parametrize("name", ["uni", "", "timm:", "timm:vit_smal_patch16_224", "hf:x"])
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
