"""Pieces of networks that neither timm nor transformers brings, and the wrappers that give every model one of two outputs.

A model gives *vectors* (batch, dim) or *tokens* (batch, n, width): prefix tokens (class, registers) first, then the patches
row by row.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ConvStem(nn.Module):
    """Patch embedding by two strided 3 × 3 convolutions and a 1 × 1 one, of CTransPath (Wang et al., Med Image Anal 2022).

    It takes the arguments timm's Swin gives its patch embedding, and returns (batch, rows, columns, width).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if patch_size not in (4, (4, 4)) or embed_dim % 8:
            raise ValueError("ConvStem has patches of 4 × 4 pixels and a width that 8 divides")
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.patch_size = (4, 4)
        self.grid_size = (self.img_size[0] // 4, self.img_size[1] // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pixels (batch, 3, h, w) → (batch, h / 4, w / 4, width)."""
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


class AttentionPool(nn.Module):
    """One learned query that attends to all tokens (CoCa's attentional pooler: Yu et al., TMLR 2022).

    Parameters
    ----------
    width
        Width of a token.
    dim
        Length of the query and of the output.
    heads
        Attention heads.
    projections
        ``"multihead"``: those of ``nn.MultiheadAttention``, with biases (CONCH); ``"linear"``: three bare matrices
        (CONCH v1.5). The names of the parameters are those of the released files.
    """

    def __init__(self, width: int, dim: int, heads: int, projections: str = "multihead") -> None:
        super().__init__()
        if projections not in ("multihead", "linear"):
            raise ValueError(f"projections {projections!r} is not 'multihead' or 'linear'")
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.attn: nn.Module | None = None
        if projections == "multihead":
            self.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        else:
            self.to_q = nn.Linear(dim, dim, bias=False)
            self.to_kv = nn.Linear(width, 2 * dim, bias=False)
            self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens (batch, n, width) → (batch, dim)."""
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        if self.attn is not None:
            return self.attn(query, tokens, tokens, need_weights=False)[0][:, 0]
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.to_q(query), *self.to_kv(tokens).chunk(2, dim=-1))
        )
        return self.to_out(scaled_dot_product_attention(q, k, v)[:, :, 0].flatten(1))


class AttentionPooled(nn.Module):
    """A timm transformer whose tokens go through an :class:`AttentionPool` and a LayerNorm (CONCH)."""

    left_out = ("attn_pool_caption", "ln_caption", "proj_contrast")
    """Keys of the released visual tower that are not used here: the caption pooler and the text projection."""

    def __init__(self, trunk: Any, dim: int, heads: int, projections: str = "multihead") -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(trunk.num_features, dim, heads, projections)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens of the trunk (batch, n, width)."""
        return self.trunk.forward_features(pixels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vectors (batch, dim)."""
        return self.ln_contrast(self.attn_pool_contrast(self.forward_features(pixels)))

    @staticmethod
    def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the visual tower out of a whole image–text model."""
        others = ("text.", "text_decoder.", "logit_scale")
        return {key.removeprefix("visual."): value for key, value in state.items() if not key.startswith(others)}


class Features(nn.Module):
    """Tokens of a model with timm's ``forward_features``: after the last norm, before pooling and head."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.core = core

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, n, width)."""
        return flat(self.core.forward_features(pixels), self.core)


class Stage(nn.Module):
    """The map of one stage of a network built with timm's ``features_only``, as tokens or averaged into a vector."""

    def __init__(self, core: Any, *, tokens: bool) -> None:
        super().__init__()
        self.core, self.tokens = core, tokens

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, n, width), or vectors (batch, width)."""
        maps = flat(self.core(pixels)[-1], self.core)
        return maps if self.tokens else maps.mean(1)


class LastHidden(nn.Module):
    """``last_hidden_state`` of a transformers model: its tokens after its last norm."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.core = core

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, n, width)."""
        return self.core(pixel_values=pixels).last_hidden_state


class Call(nn.Module):
    """A model that is called with further arguments, and of whose outputs one is taken."""

    def __init__(self, core: nn.Module, arguments: Mapping[str, Any], output: int | None) -> None:
        super().__init__()
        self.core, self.arguments, self.output = core, dict(arguments), output

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Whatever the model gives."""
        found = self.core(pixels, **self.arguments)
        return found if self.output is None else found[self.output]


def flat(features: torch.Tensor, core: Any) -> torch.Tensor:
    """Flatten a map, (batch, width, h, w) or timm's channels-last ``NHWC``, row by row; tokens stay as they are."""
    if features.ndim != 4:
        return features
    last = str(getattr(core, "output_fmt", "NCHW")).endswith("NHWC")
    return (features if last else features.permute(0, 2, 3, 1)).flatten(1, 2)
