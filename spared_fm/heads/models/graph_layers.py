"""Layers over the spots around a spot, given as a table of row numbers with -1 where there are no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def gathered(x: Tensor, table: Tensor) -> Tensor:
    """Return the vectors (…, m, k, width) of the spots in a table (m, k) from all spots' (…, m, width), 0 for none."""
    found: Tensor = x[..., table.clamp(min=0), :] * (table >= 0).unsqueeze(-1)
    return found


def neighbour_mean(x: Tensor, table: Tensor) -> Tensor:
    """Return the mean (…, m, width) over the spots in a table (m, k), 0 where there are none."""
    count = (table >= 0).sum(dim=1, keepdim=True).clamp(min=1)
    out: Tensor = gathered(x, table).sum(dim=-2) / count
    return out


def offset_cells(xy: NDArray[np.float64], table: NDArray[np.int64], half: int) -> Tensor:
    """Return in which cell around a spot each neighbour lies, shared linearly between the four cells next to it.

    On a square lattice this picks one cell, and a sum over neighbours with one weight per cell is a convolution. It
    needs no lattice, so hexagonal and tilted slides do not lose spots to a cell that is taken.

    Parameters
    ----------
    xy
        (m, 2) positions, in multiples of the distance between spots.
    table
        (m, k) neighbours.
    half
        Cells on each side of the spot's own.

    Returns
    -------
    torch.Tensor
        (m, k, (2 · half + 1)²) float32 shares, row by row from the top left; 0 for no neighbour and beyond the cells.
    """
    offset = xy[table] - xy[:, None]
    cells = np.arange(-half, half + 1)
    along = np.clip(1.0 - np.abs(offset[..., None] - cells), 0.0, None)
    shares = along[:, :, 1, :, None] * along[:, :, 0, None, :] * (table >= 0)[:, :, None, None]
    return torch.from_numpy(shares.reshape(*table.shape, -1).astype(np.float32))
