"""A floor for comparisons: twelve colour statistics per patch, with nothing of its texture or shape in them.

In this order, each for R, G, B: mean and standard deviation of the values scaled to 0–1, mean and standard deviation of the
optical density ``-ln((255 · value + 1) / 256)`` (Beer–Lambert), all over the pixels of the patch. Nothing is downloaded or
learned. What an encoder is worth is what it brings above this.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from spared_fm.errors import InputError


class ColourStats(torch.nn.Module):
    """Means and standard deviations of colours and optical densities; the module's docstring tells their order.

    Attributes
    ----------
    name, version
        Identity of the encoder. Any change of a value of the vector is a new ``version``.
    dim
        Length of the vector.
    """

    name: ClassVar[str] = "colour-stats"
    version: ClassVar[int] = 1
    dim: ClassVar[int] = 12

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Encode patches.

        Parameters
        ----------
        x
            RGB patches in [0, 1], (B, 3, H, W) with a pixel or more. Values outside are clipped.

        Returns
        -------
        Tensor
            float32 (B, 12), finite for every finite input.

        Raises
        ------
        InputError
            If the shape isn't (B, 3, >= 1, >= 1) or the values aren't floating point.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 1 or not x.is_floating_point():
            raise InputError(
                f"colour-stats: got {x.dtype} patches of shape {tuple(x.shape)}; give floating-point RGB in [0, 1] "
                "of shape (batch, 3, height, width)"
            )
        x = x.float().clamp(0, 1).flatten(2)
        density = -torch.log((255 * x + 1) / 256)
        return torch.cat([part for values in (x, density) for part in _moments(values)], 1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the last axis; those of a constant are itself and 0, to the bit."""
    low = x.amin(2, keepdim=True)  # a sum of what is above it rounds less, and not at all where there is nothing
    above = x - low
    mean = above.mean(2, keepdim=True)
    return (low + mean)[..., 0], (above - mean).square().mean(2).sqrt()
