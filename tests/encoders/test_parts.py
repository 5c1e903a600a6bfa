from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from spared_fm.encoders.parts import AttentionPool, AttentionPooled, Call, ConvStem, Features, Stage, flat


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def norm(values: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    values = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    return values * layer.weight.detach().numpy() + layer.bias.detach().numpy()


@pytest.mark.parametrize("projections", ["multihead", "linear"])
def test_attention_pool_by_its_formula(projections: str):
    torch.manual_seed(0)
    pool = AttentionPool(width=12, dim=8, heads=2, projections=projections)
    for parameter in pool.parameters():
        nn.init.normal_(parameter)  # biases and norms start as zeros and ones
    tokens = np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)
    weights = {name: value.detach().numpy() for name, value in pool.named_parameters()}
    if projections == "multihead":
        wq, wk, wv = (weights[f"attn.{x}_proj_weight"] for x in "qkv")
        bq, bk, bv = weights["attn.in_proj_bias"].reshape(3, 8)
        wo, bo = weights["attn.out_proj.weight"], weights["attn.out_proj.bias"]
    else:
        wq, (wk, wv), wo = weights["to_q.weight"], np.split(weights["to_kv.weight"], 2), weights["to_out.weight"]
        bq = bk = bv = bo = np.zeros(8)
    q, keys = norm(weights["query"], pool.ln_q) @ wq.T + bq, norm(tokens, pool.ln_k)
    k, v = keys @ wk.T + bk, keys @ wv.T + bv
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        shares = softmax(np.einsum("qd,bnd->bqn", q[:, part], k[..., part]) / 2)  # the root of 4
        heads.append(np.einsum("bqn,bnd->bqd", shares, v[..., part])[:, 0])
    with torch.inference_mode():
        found = pool.eval()(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(found, np.hstack(heads) @ wo.T + bo, rtol=1e-4, atol=1e-4)


def test_attention_pool_has_the_released_names():
    assert set(AttentionPool(12, 8, 2).state_dict()) == {
        *("query", "ln_q.weight", "ln_q.bias", "ln_k.weight", "ln_k.bias", "attn.in_proj_bias"),
        *("attn.q_proj_weight", "attn.k_proj_weight", "attn.v_proj_weight"),
        *("attn.out_proj.weight", "attn.out_proj.bias"),
    }
    names = set(AttentionPool(12, 8, 2, "linear").state_dict())
    assert names == {
        *("query", "ln_q.weight", "ln_q.bias", "ln_k.weight", "ln_k.bias"),
        *("to_q.weight", "to_kv.weight", "to_out.weight"),
    }
    with pytest.raises(ValueError, match="projections"):
        AttentionPool(12, 8, 2, "none")


def test_attention_pooled_takes_all_tokens_of_the_trunk():
    torch.manual_seed(0)
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32)
    model = AttentionPooled(trunk, dim=8, heads=2).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = model.forward_features(pixels)
        assert tokens.shape == (2, 1 + 4, 192)
        pooled = model.attn_pool_contrast(tokens)
        np.testing.assert_allclose(model(pixels), norm(pooled.numpy(), model.ln_contrast), atol=1e-4)


def test_conv_stem_is_two_strided_convolutions_and_a_projection():
    torch.manual_seed(0)
    stem = ConvStem((32, 32), (4, 4), 3, 16, norm_layer=nn.LayerNorm).eval()
    assert [tuple(w.shape) for name, w in stem.named_parameters() if w.ndim == 4] == [
        *((2, 3, 3, 3), (4, 2, 3, 3), (16, 4, 1, 1))
    ]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found = stem(pixels)
        one = torch.conv2d(pixels, stem.proj[0].weight, stride=2, padding=1).div(np.sqrt(1 + 1e-5)).relu()
        two = torch.conv2d(one, stem.proj[3].weight, stride=2, padding=1).div(np.sqrt(1 + 1e-5)).relu()
        maps = torch.conv2d(two, stem.proj[6].weight, stem.proj[6].bias)
    assert found.shape == (2, 8, 8, 16)
    assert (stem.grid_size, stem.num_patches) == ((8, 8), 64)
    np.testing.assert_allclose(found, norm(maps.permute(0, 2, 3, 1).numpy(), stem.norm), atol=1e-4)
    with pytest.raises(ValueError, match="4 × 4"):
        ConvStem(32, 8)


def test_maps_are_flattened_row_by_row_wherever_their_channels_are():
    maps = torch.arange(24.0).reshape(1, 4, 2, 3)

    class Last(nn.Module):
        output_fmt = "NHWC"

    assert torch.equal(flat(maps, nn.Identity())[0, 1], maps[0, :, 0, 1])
    assert torch.equal(flat(maps.permute(0, 2, 3, 1), Last())[0, 3], maps[0, :, 1, 0])
    assert flat(maps[0], nn.Identity()) is not None
    assert flat(maps[0], nn.Identity()).shape == (4, 2, 3)


def test_swins_tokens_are_its_map():
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        tokens = Features(swin)(pixels)
        assert tokens.shape == (1, 49, 768)
        np.testing.assert_allclose(tokens.mean(1), swin(pixels), atol=1e-5)  # it averages its map


def test_a_stage_as_tokens_or_as_their_mean():
    torch.manual_seed(0)
    core = timm.create_model("resnet18", features_only=True, out_indices=(2,)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tokens = Stage(core, tokens=True)(pixels)
        assert torch.equal(Stage(core, tokens=False)(pixels), tokens.mean(1))
        assert torch.equal(tokens[:, 9], core(pixels)[0][:, :, 1, 1])
    assert tokens.shape == (2, 64, 128)


def test_a_call_with_arguments():
    class Two(nn.Module):
        def forward(self, pixels: torch.Tensor, by: float) -> tuple[torch.Tensor, None]:
            return pixels * by, None

    assert Call(Two(), {"by": 3.0}, 0)(torch.ones(1)).item() == 3
    assert Call(Two(), {"by": 3.0}, None)(torch.ones(1))[1] is None
