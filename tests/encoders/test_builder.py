from __future__ import annotations

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from spared_fm.encoders.builder import build, forward_together, shares_forward, with_tokens
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from tests.encoders.own_rows import BASE, write

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


@pytest.mark.parametrize("name", ["stain-bank", "colour-stats"])
def test_the_built_in_encoders(patches: np.ndarray, name: str):
    encoder = build(resolve(name))
    found = encoder.encode(patches)
    assert found.shape == (3, encoder.dim)
    assert np.isfinite(found).all()
    assert encoder.versioned_name.startswith(f"{name}/")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build_16 = {**BASE["build"], "depth": 1}
    return write(
        tmp_path_factory.mktemp("rows"),
        cls={},
        cls_mean={"pooling": "cls+mean", "dim": 384},
        half={"compute_dtype": "float16"},
        shallow={"build": build_16},
        attention={"pooling": "model", "dim": 8, "head": {"kind": "attention-pool", "dim": 8, "heads": 2}},
        wrong_dim={"dim": 191, "pooling": "model"},
        wrong_side={"crop": 60},
        wrong_width={"token_dim": 100, "pooling": "model", "head": {"kind": "attention-pool", "dim": 192, "heads": 2}},
        wrong_build={"build": {"depths": 2}},
        wrong_architecture={"architecture": "vit_tinny"},
        wrong_head={"head": {"kind": "drop", "name": "absent"}},
    )


@pytest.fixture(scope="module")
def small(patches: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(patches[:, :64, :64])


def test_one_forward_pass_serves_encoders_that_pool_differently(registry: Path, small: np.ndarray):
    cls = build(resolve("cls", "random", registry=registry))
    both = build(resolve("cls-mean", "random", registry=registry), others=[cls])
    grid = with_tokens(cls, 2)
    alone = [encoder.encode(small) for encoder in (cls, both, grid)]
    assert cls.module is both.module is grid.module
    passes = []
    hook = cls.module.register_forward_hook(lambda *_: passes.append(1))
    together = forward_together([cls, both, grid], cls.transform(small))
    hook.remove()
    assert len(passes) == 1
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [found.shape[1] for found in together] == [cls.dim, both.dim, grid.dim] == [192, 384, 4 * 192]


def test_only_the_same_module_is_shared(registry: Path):
    cls = build(resolve("cls", "random", registry=registry))

    def module(name: str, weights: str = "random", seed: int = 0) -> torch.nn.Module:
        return build(resolve(name, weights, seed=seed, registry=registry), others=[cls]).module

    assert module("cls-mean") is module("half") is cls.module  # precision is no part of the module
    assert cls.module not in (module("cls", seed=1), module("shallow"), module("attention"))
    half = build(resolve("half", "random", registry=registry), others=[cls])
    assert not shares_forward(cls, half)
    with pytest.raises(ValueError, match="share module"):
        forward_together([cls, half], torch.zeros(1, 3, 64, 64))


def test_tokens_of_a_model_that_gives_vectors_have_its_weights(registry: Path, small: np.ndarray):
    pooled = build(resolve("attention", "random", registry=registry))
    tokens = build(resolve("attention", "random", registry=registry, tokens=4))
    assert (pooled.dim, tokens.dim, tokens.weights) == (8, 16 * 192, pooled.weights)
    assert not shares_forward(pooled, with_tokens(pooled, 4))
    with torch.inference_mode():
        expected = pooled.module.trunk.forward_features(pooled.transform(small))[:, 5:].flatten(1)
    np.testing.assert_allclose(tokens.encode(small), expected, atol=1e-5)


def test_tokens_of_timms_models(patches: np.ndarray):
    plain = build(resolve(SMALL))
    tokens = build(resolve(SMALL, tokens=7))
    assert (tokens.dim, tokens.pooling, tokens.weights, tokens.prefix_tokens) == (49 * 192, "grid7", plain.weights, 1)
    with torch.inference_mode():
        maps = plain.module.forward_features(plain.transform(patches))[:, 1:].reshape(3, 7, 2, 7, 2, 192)
    np.testing.assert_allclose(tokens.encode(patches), maps.mean((2, 4)).reshape(3, -1), atol=1e-5)
    with pytest.raises(InputError, match=r"14 × 14 patch tokens, too few for a grid of 15"):
        build(resolve(SMALL, tokens=15))
    with pytest.raises(InputError, match="identity"):
        with_tokens(build(resolve(SMALL, views="dihedral")), 7)
    with pytest.raises(InputError, match="no grid"):
        with_tokens(build(resolve("stain-bank")), 2)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_on_a_cpu(registry: Path, small: np.ndarray, precision: str):
    single = build(resolve("cls-mean", "random", registry=registry))
    half = build(resolve("cls-mean", "random", registry=registry, precision=precision))
    assert (single.compute_dtype, half.compute_dtype) == ("float32", precision)
    a, b = single.encode(small), half.encode(small)
    assert b.dtype == np.float32
    moved = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    assert 1e-5 < moved.min() < moved.max() < (1e-2 if precision == "bfloat16" else 1e-3)
    row = build(resolve("half", "random", registry=registry))
    assert row.compute_dtype == "float16"


def test_what_a_row_builds_is_part_of_its_name(registry: Path, tmp_path: Path):
    names = {build(resolve(name, "random", registry=registry)).versioned_name for name in ("cls", "shallow")}
    assert {name.split("/")[0] for name in names} == {"cls", "shallow"}
    assert len({name.split("/")[1] for name in names}) == 2
    other = write(tmp_path, cls={"build": {**BASE["build"], "act_layer": "SiLU"}})
    activated = build(resolve("cls", "random", registry=other))
    plain = build(resolve("cls", "random", registry=registry))
    assert activated.weights == plain.weights  # no trace of the activation in them
    assert activated.versioned_name != plain.versioned_name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong-dim", "promises 191 numbers, its model gives 192"),
        ("wrong-side", "does not take 60 × 60 pixels"),
        ("wrong-build", r"can't build 'vit_tiny_patch16_224' with .*depths.*mend its registry row"),
        ("wrong-architecture", "can't build 'vit_tinny'"),
        ("wrong-head", "can't build .*absent"),
    ],
)
def test_rows_that_contradict_their_model(registry: Path, name: str, words: str):
    with pytest.raises(InputError, match=f"^encoder {name}: .*{words}") as caught:
        build(resolve(name, "random", registry=registry))
    assert "\n" not in str(caught.value)


def test_a_row_with_another_token_width(registry: Path):
    with pytest.raises(InputError, match="promises tokens of 100, its model's have 192"):
        build(resolve("wrong-width", "random", registry=registry, tokens=2))


def test_views_of_the_built_in_encoder(patches: np.ndarray):
    encoder = build(resolve("stain-bank", views="dihedral-mean"))
    turned = np.ascontiguousarray(np.rot90(patches, axes=(1, 2)))
    np.testing.assert_allclose(encoder.encode(turned), encoder.encode(patches), rtol=1e-3, atol=1e-3)
    assert build(resolve("stain-bank", views="dihedral")).dim == 8 * encoder.dim
