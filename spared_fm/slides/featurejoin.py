"""Join the rows of a feature file to spots: by where they are, or by barcode. One row for one spot, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["join_barcodes", "join_places", "shift_and_spread"]


def join_places(
    spots: np.ndarray, centres: np.ndarray, tolerance: float, source: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Give each spot the patch whose centre is within `tolerance` of it.

    Parameters
    ----------
    spots
        Float (n, 2), µm.
    centres
        Float (m, 2), m > 0, µm: centres of the patches.
    tolerance
        µm.
    source
        The file, for messages.

    Returns
    -------
    rows : numpy.ndarray
        int64 (n,): the patch of each spot, -1 where none is near enough.
    distance : numpy.ndarray
        float64 (n,): µm from each spot to the nearest patch, near enough or not.

    Raises
    ------
    InputError
        Two patches at one place, two patches near enough to one spot, or two spots near enough to one patch: any choice
        between them would be a guess.
    """
    _, counts = np.unique(centres, axis=0, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{source}: {int((counts > 1).sum())} places occur more than once: remove the doubles, or write the file again"
        )
    distances, nearest = cKDTree(centres).query(spots, k=[1, 2])  # without a second patch its distance is infinite
    distance = distances[:, 0]
    unclear = distances[:, 1] <= tolerance
    if unclear.any():
        raise InputError(
            f"{source}: {int(unclear.sum())} spots have two patches within {tolerance:.4g} µm: pass --tolerance-um below "
            f"{distances[unclear, 1].min():.4g}"
        )
    rows = np.where(distance <= tolerance, nearest[:, 0], -1).astype(np.int64)
    joined = np.flatnonzero(rows >= 0)
    order = joined[np.lexsort((distance[joined], rows[joined]))]
    again = order[1:][np.diff(rows[order]) == 0]
    if len(again):
        raise InputError(
            f"{source}: {len(again)} patches are within {tolerance:.4g} µm of two spots: pass --tolerance-um below "
            f"{distance[again].min():.4g}"
        )
    return rows, distance


def join_barcodes(spots: Sequence[str], barcodes: Sequence[str], source: Path) -> np.ndarray:
    """Give each spot the row with its barcode: int64 (n,), -1 where there is none.

    Raises
    ------
    InputError
        A barcode occurs twice in the file, or none is a spot's.
    """
    at = {barcode: row for row, barcode in enumerate(barcodes)}
    if len(at) < len(barcodes):
        raise InputError(
            f"{source}: {len(barcodes) - len(at)} barcodes occur more than once: remove the doubles, or write the file again"
        )
    rows = np.array([at.get(spot, -1) for spot in spots], np.int64)
    if (rows < 0).all():
        raise InputError(
            f"{source}: none of its barcodes (e.g. {barcodes[0]!r}) is a spot's (e.g. {spots[0]!r}): give the slide's own file"
        )
    return rows


def shift_and_spread(spots: np.ndarray, corners: np.ndarray) -> tuple[float, float]:
    """Say how far `corners` (n, 2) lie from `spots` (n, 2) as a whole, and how much the single ones differ from that.

    Both are medians, in the unit of the arguments. Corners or centres of the patches of `spots` themselves are shifted by
    less than a patch, all alike; those of another section with the same barcodes are not.
    """
    offsets = corners - spots
    shift = np.median(offsets, axis=0)
    return float(np.hypot(*shift)), float(np.median(np.hypot(*(offsets - shift).T)))
