"""What happens to a patch before the encoder: resize, centre crop, normalise, on whole batches of uint8.

The steps are torchvision's evaluation transform (resize the shorter side with antialiasing, centre crop, scale to 0–1,
normalise). They run on uint8 batches in channels-last order, several times faster than image by image through Pillow; pixels
agree with Pillow to two grey levels, all but a few in a hundred exactly (tested on noise).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from spared_fm.errors import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """Resize, centre crop and normalise.

    Parameters
    ----------
    resize
        Side after resizing, pixels; None leaves the patch as it is.
    crop
        Side of the centre crop, pixels; None takes all.
    interpolation
        ``bicubic`` or ``bilinear``, with antialiasing.
    mean, std
        Per channel (R, G, B), of values scaled to 0–1.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def as_data(self) -> dict[str, Any]:
        """Give the transform as plain data, for the recipe."""
        return {
            "resize": self.resize,
            "crop": self.crop,
            "interpolation": self.interpolation,
            "antialias": True,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def __call__(self, patches: np.ndarray) -> torch.Tensor:
        """Transform uint8 patches (batch, px, px, 3) into float32 (batch, 3, side, side), channels last in memory.

        Raises
        ------
        InputError
            The patches are smaller than the crop.
        """
        pixels = torch.from_numpy(patches).permute(0, 3, 1, 2)
        if self.resize is not None and self.resize != pixels.shape[-1]:
            size = (self.resize, self.resize)
            pixels = interpolate(pixels, size=size, mode=self.interpolation, antialias=True)
        if self.crop is not None and self.crop != pixels.shape[-1]:
            if self.crop > pixels.shape[-1]:
                raise InputError(
                    f"patches of {pixels.shape[-1]} pixels are smaller than the encoder's crop of {self.crop}; "
                    "read them with more pixels (--patch-px)"
                )
            # torchvision's rounding of an odd margin
            start = round((pixels.shape[-1] - self.crop) / 2.0)
            pixels = pixels[:, :, start : start + self.crop, start : start + self.crop]
        rows = pixels.permute(0, 2, 3, 1).contiguous()
        batch, height, width, _ = rows.shape
        scale, shift = _affine(self.mean, self.std, width)
        values = rows.view(batch, height, width * 3).float().mul_(scale).add_(shift)
        return values.view(batch, height, width, 3).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of one row of interleaved pixels: contiguous, so that the arithmetic is vectorised."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    return scale.float().repeat(width), shift.float().repeat(width)
