from __future__ import annotations

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from spared_fm.encoders.builder import build
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError

SMALL = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "dim", "pooling", "prefix"),
    [
        (SMALL, 192, "token", 1),
        ("timm:vit_tiny_patch16_224.augreg_in21k", 192, "token", 1),
        ("timm:mobilenetv3_small_100", 1024, "avg", 0),
        ("timm:resnet18", 512, "avg", 0),
    ],
)
def test_timm_vectors_are_timms_own(patches: np.ndarray, name: str, dim: int, pooling: str, prefix: int):
    encoder = build(resolve(name, "random"))
    assert (encoder.dim, encoder.pooling, encoder.prefix_tokens) == (dim, pooling, prefix)
    torch.manual_seed(0)
    model = timm.create_model(name.removeprefix("timm:").split(".")[0], pretrained=False, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model(torch.stack([transform(Image.fromarray(patch)) for patch in patches])).numpy()
    found = encoder.encode(patches)
    assert found.dtype == np.float32
    # noise is the worst case for the pixels' last grey level (see the transform's test); float16 rounds about as much
    assert (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max() < 2e-3
    with torch.inference_mode():  # and on the same pixels the module is timm's, to rounding
        same = model(encoder.transform(patches).contiguous()).numpy()
    np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-5)


def test_seeded_builds_agree_and_leave_the_callers_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, other = (build(resolve(SMALL, seed=seed)).weights for seed in (0, 0, 1))
    assert one == two != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_from_a_file(tmp_path: Path, patches: np.ndarray):
    torch.manual_seed(5)
    trained = timm.create_model("vit_tiny_patch16_224", pretrained=False)  # with its classifier, as hubs publish it
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    encoder = build(resolve(SMALL, tmp_path / "w.safetensors"))
    assert encoder.weights != build(resolve(SMALL)).weights
    trained.reset_classifier(0)
    assert encoder.weights == build(resolve(SMALL, tmp_path / "w.safetensors")).weights
    with torch.inference_mode():
        expected = trained.eval()(encoder.transform(patches)).numpy()
    np.testing.assert_allclose(encoder.encode(patches), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_architecture(tmp_path: Path):
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(InputError, match=r"small\.safetensors: weights do not fit.*expected"):
        build(resolve(SMALL, tmp_path / "small.safetensors"))


def test_the_recipe_fields_say_what_the_transform_does():
    encoder = build(resolve(SMALL))
    assert encoder.transform.as_data() == {
        "resize": 248,
        "crop": 224,
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert encoder.versioned_name == SMALL


def test_pretrained_weights_without_a_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="--weights FILE"):
        build(resolve("timm:vit_tiny_patch16_224.augreg_in21k"))


def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match="not available"):
        build(resolve(SMALL), device="abacus")


def test_the_built_in_encoder(patches: np.ndarray):
    encoder = build(resolve("stain-bank"))
    found = encoder.encode(patches)
    assert found.shape == (3, encoder.dim)
    assert np.isfinite(found).all()
    assert encoder.versioned_name.startswith("stain-bank/")
