from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from spared_fm.encoders.models import fill_core, make_core, timm_conversion, wrap
from spared_fm.encoders.registry import Row, row
from spared_fm.errors import InputError
from tests.encoders.own_rows import write

State = dict[str, torch.Tensor]
TRANSFORMERS = {"image_size": 32, "num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 3}


def own(folder: Path, **fields: Any) -> Row:
    return row("mine", write(folder, mine=fields))


def random_core(found: Row, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    core = make_core(found)
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter)
    return core


def loads(found: Row, source: torch.nn.Module, published: State, path: Path) -> None:
    """Weights under their published names must become those of ``source``."""
    save_file({key: value.contiguous() for key, value in published.items()}, path)
    target = random_core(found, 2)
    fill_core(target, found, str(path))
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name


def test_dinov2s_own_names(tmp_path: Path):
    """The authors' files have a mask token, another name for the registers, and one embedding for class and patches."""
    build = {"img_size": 56, "patch_size": 14, "depth": 2, "num_classes": 0, "init_values": 1e-5, "reg_tokens": 4}
    found = own(tmp_path, build={**build, "no_embed_class": True}, crop=56, px=56)
    source = random_core(found, 1)
    published = dict(source.state_dict())
    published["register_tokens"] = published.pop("reg_token")
    published["pos_embed"] = torch.cat([torch.zeros(1, 1, 192), published["pos_embed"]], dim=1)
    published["mask_token"] = torch.zeros(1, 192)
    loads(found, source, published, tmp_path / "w.safetensors")


def test_swin_files_that_number_the_downsampling_by_the_stage_before(tmp_path: Path):
    found = own(
        tmp_path,
        architecture="swin_tiny_patch4_window7_224",
        build={"num_classes": 0, "embed_layer": "ConvStem", "depths": [1, 1, 1, 1]},
        pooling="mean",
        prefix_tokens=0,
        dim=768,
        token_dim=768,
        crop=224,
        px=224,
    )
    source = random_core(found, 1)
    published = {}
    for key, value in source.state_dict().items():
        for stage in (1, 2, 3):
            if key.startswith(f"layers.{stage}.downsample"):
                key = key.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
                break
        published[key] = value
    published["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    loads(found, source, published, tmp_path / "w.safetensors")


def test_a_position_embedding_of_another_side_is_resampled(tmp_path: Path):
    found = own(tmp_path)
    torch.manual_seed(1)
    large = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, reg_tokens=4, img_size=128)
    save_file(large.state_dict(), tmp_path / "large.safetensors")
    core = make_core(found)
    fill_core(core, found, str(tmp_path / "large.safetensors"))
    assert torch.equal(core.blocks[1].mlp.fc1.weight, large.blocks[1].mlp.fc1.weight)
    assert core.pos_embed.shape == (1, 21, 192)


def test_coca_files_give_their_visual_tower(tmp_path: Path):
    head = {"kind": "attention-pool", "dim": 8, "heads": 2}
    found = own(tmp_path, head=head, pooling="model", dim=8)
    source = random_core(found, 1)
    published = {f"visual.{key}": value for key, value in source.state_dict().items()}
    for key in (
        "visual.attn_pool_caption.query",
        "visual.ln_caption.bias",
        "visual.proj_contrast",
        "text.a",
        "logit_scale",
    ):
        published[key] = torch.ones(1)
    loads(found, source, published, tmp_path / "w.safetensors")
    published["visual.unheard_of"] = torch.ones(1)
    with pytest.raises(InputError, match="unheard_of has no place"):
        loads(found, source, published, tmp_path / "w.safetensors")


def test_a_stage_takes_the_whole_networks_file_and_no_other(tmp_path: Path):
    found = own(
        tmp_path,
        architecture="resnet18",
        build={},
        head={"kind": "stage", "index": 3},
        pooling="mean",
        prefix_tokens=0,
        dim=256,
        token_dim=256,
    )
    torch.manual_seed(1)
    whole = timm.create_model("resnet18")
    core = make_core(found)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    fill_core(core, found, str(tmp_path / "w.safetensors"))
    assert torch.equal(core.layer3[1].conv2.weight, whole.layer3[1].conv2.weight)
    save_file({**whole.state_dict(), "layer5.weight": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"layer5\.weight has no place"):
        fill_core(core, found, str(tmp_path / "w.safetensors"))


def test_a_package_with_a_part_dropped(tmp_path: Path):
    found = own(
        tmp_path,
        loader="package",
        architecture="torchvision.models:shufflenet_v2_x0_5",
        build={},
        head={"kind": "drop", "name": "fc"},
        pooling="model",
        prefix_tokens=0,
        dim=1024,
        token_dim=0,
    )
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(1)
    whole = shufflenet_v2_x0_5()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    core = make_core(found).eval()
    fill_core(core, found, str(tmp_path / "w.safetensors"))
    caught = []
    whole.fc.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0]))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        whole.eval()(pixels)
        torch.testing.assert_close(core(pixels), caught[0])


def old_names(state: State, *, vit: bool) -> State:
    """Names of transformers 4, in which the files were published."""
    published = {}
    for key, value in state.items():
        for new, old in (("q", "query"), ("k", "key"), ("v", "value")):
            key = key.replace(f"attention.{new}_proj", f"attention.attention.{old}")
        key = key.replace("attention.o_proj", "attention.output.dense")
        if vit:
            key = f"encoder.layer.{key.removeprefix('layers.')}" if key.startswith("layers.") else key
            key = key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        if "gate_proj" in key:
            value = torch.cat([value, state[key.replace("gate", "up")]])
            key = key.replace("gate_proj", "weights_in")
        if "up_proj" not in key:
            published[key.replace("down_proj", "weights_out")] = value
    return published


@pytest.mark.parametrize(
    ("architecture", "build"),
    [
        ("ViTModel", {**TRANSFORMERS, "patch_size": 16, "intermediate_size": 96}),
        ("Dinov2Model", {**TRANSFORMERS, "patch_size": 16}),
        ("Dinov2Model", {**TRANSFORMERS, "patch_size": 16, "use_swiglu_ffn": True}),
        (
            "Dinov2WithRegistersModel",
            {**TRANSFORMERS, "patch_size": 16, "num_register_tokens": 4, "use_swiglu_ffn": True},
        ),
    ],
)
def test_transformers_files_of_older_names(
    tmp_path: Path, capfd: pytest.CaptureFixture, architecture: str, build: dict
):
    pytest.importorskip("transformers")
    prefix = 1 + build.get("num_register_tokens", 0)
    found = own(
        tmp_path,
        loader="transformers",
        architecture=architecture,
        build=build,
        requires=["transformers"],
        dim=48,
        token_dim=48,
        prefix_tokens=prefix,
        crop=32,
        px=32,
    )
    source = random_core(found, 1)
    published = old_names(source.state_dict(), vit=architecture == "ViTModel")
    assert published.keys() != source.state_dict().keys()
    loads(found, source, {**published, "pooler.dense.weight": torch.ones(1)}, tmp_path / "w.safetensors")
    del published["layernorm.weight"]
    with pytest.raises(InputError, match=r"layernorm\.weight is missing"):
        loads(found, source, published, tmp_path / "w.safetensors")
    assert capfd.readouterr() == ("", "")
    module = wrap(make_core(found), found).eval()
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, prefix + 4, 48)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"loader": "transformers", "architecture": "ViTModel", "requires": ["transformers"]},
            r"'spared-fm\[transformers\]'",
        ),
        (
            {"loader": "package", "architecture": "no_such.part:make", "requires": ["no-such @ git+x"]},
            "'no-such @ git[+]x'",
        ),
        ({"loader": "package", "architecture": "no_such:make"}, "'no_such'"),
    ],
)
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict, words: str):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=rf"^encoder mine needs the package \w+: pip install {words}$"):
        make_core(own(tmp_path, **fields))


def test_networks_without_a_conversion():
    assert timm_conversion(timm.create_model("resnet18")) is None
