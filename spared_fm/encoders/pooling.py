"""From a model's output to one vector per patch, and the views of a patch that go through the model."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import adaptive_avg_pool2d

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Pool = Callable[[torch.Tensor], torch.Tensor]


def pooler(pooling: str, prefix_tokens: int, grid: int = 0) -> Pool:
    """Choose the function from a model's output to vectors.

    Parameters
    ----------
    pooling
        ``cls``, ``mean``, ``cls+mean``, or ``model``: the output is the vector.
    prefix_tokens
        Class and register tokens in front of the patch tokens: none of them enters a mean or a grid.
    grid
        Side of a token grid instead; 0 for none.

    Returns
    -------
    callable
        Output, float32 (batch, n, width) or (batch, dim) → vectors (batch, dim).
    """
    if grid:
        return partial(token_grid, prefix_tokens=prefix_tokens, side=grid)
    if pooling == "cls":
        return cls
    if pooling == "mean":
        return partial(mean, prefix_tokens=prefix_tokens)
    if pooling == "cls+mean":
        return partial(cls_mean, prefix_tokens=prefix_tokens)
    return vector


def vector(output: torch.Tensor) -> torch.Tensor:
    """Take the model's own vectors (batch, dim)."""
    if output.ndim != 2:
        raise InputError(f"the model gives {tuple(output.shape)}, not one vector per patch; its pooling must be named")
    return output


def cls(tokens: torch.Tensor) -> torch.Tensor:
    """First token: (batch, n, width) → (batch, width)."""
    return tokens[:, 0]


def mean(tokens: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
    """Mean of the patch tokens: (batch, n, width) → (batch, width)."""
    return tokens[:, prefix_tokens:].mean(1)


def cls_mean(tokens: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
    """First token, then the mean of the patch tokens: (batch, n, width) → (batch, 2 × width)."""
    return torch.cat([cls(tokens), mean(tokens, prefix_tokens)], dim=1)


def token_grid(tokens: torch.Tensor, prefix_tokens: int, side: int) -> torch.Tensor:
    """Average the patch tokens to ``side`` × ``side`` cells: (batch, n, width) → (batch, side² × width).

    The cells follow each other row by row from the top left, each with its ``width`` numbers; they are those of adaptive
    average pooling, which overlap by a token where ``side`` does not divide the number of tokens per side.

    Raises
    ------
    InputError
        There is no square grid of tokens, or it is smaller than ``side``.
    """
    count = tokens.shape[1] - prefix_tokens if tokens.ndim == 3 else 0
    across = math.isqrt(max(count, 0))
    if not count or across**2 != count:
        raise InputError(f"the model gives {tuple(tokens.shape)}, no square grid of patch tokens; leave out --tokens")
    if side > across:
        raise InputError(
            f"the model has {across} × {across} patch tokens, too few for a grid of {side}; ask for less tokens"
        )
    maps = tokens[:, prefix_tokens:].transpose(1, 2).unflatten(2, (across, across))
    return adaptive_avg_pool2d(maps, side).permute(0, 2, 3, 1).flatten(1)


def views_of(pixels: torch.Tensor, views: str) -> Iterator[torch.Tensor]:
    """Give the views of transformed patches (batch, 3, side, side), channels last in memory.

    ``identity`` is the patch; the two others are the eight of the dihedral group, in this order: turned counter-clockwise by
    0, 90, 180 and 270 degrees, then mirrored left to right and turned by the same.
    """
    if views == "identity":
        yield pixels
        return
    for square in (pixels, pixels.flip(3)):
        for quarter in range(4):
            yield square.rot90(quarter, (2, 3)).contiguous(memory_format=torch.channels_last)


def combine(vectors: Sequence[torch.Tensor], views: str) -> torch.Tensor:
    """Join the vectors (batch, dim) of the views: averaged (``dihedral-mean``) or one after the other (``dihedral``)."""
    if views == "dihedral-mean":
        return torch.stack(list(vectors)).mean(0)
    return vectors[0] if len(vectors) == 1 else torch.cat(list(vectors), dim=1)
