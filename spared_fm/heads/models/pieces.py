"""Slides cut into compact pieces, with positions in units of the distance between spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from spared_fm.heads.models.graphs import nearest_table, pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """Some spots of one slide; all of them if the slide is not too large.

    Attributes
    ----------
    rows
        (m,) numbers of the spots among the slide's.
    xy
        (m, 2) float64 positions from the slide's top left corner, in multiples of the distance between spots.
    """

    rows: NDArray[np.intp]
    xy: NDArray[np.float64]

    def nearest(self, k: int, reach: float = np.inf, *, itself: bool = True) -> NDArray[np.int64]:
        """Return the ``k`` nearest spots within ``reach``, -1 where there are fewer, behind the spot itself or not.

        Returns
        -------
        numpy.ndarray
            (m, 1 + k) or (m, k) numbers of the piece's spots.
        """
        table = nearest_table(self.xy, None, k)
        far = np.linalg.norm(self.xy[table] - self.xy[:, None], axis=2) > reach
        table[far] = -1
        return np.column_stack([np.arange(len(table)), table]) if itself else table


def pitch(xy: NDArray[np.float64]) -> float:
    """Return the median distance of places to the next one, 1 if there is only one."""
    places = np.unique(xy, axis=0)
    if len(places) < 2:
        return 1.0
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))


def cut(xy: NDArray[np.float64], max_spots: int) -> list[Piece]:
    """Cut a slide whose spots lie at ``xy`` (n, 2), in any unit, into pieces of at most ``max_spots``."""
    if len(xy) == 0:
        return []
    placed, number = (xy - xy.min(axis=0)) / pitch(xy), pieces(xy, None, len(xy), max_spots)
    parts = [np.flatnonzero(number == i) for i in range(number.max() + 1)]
    return [Piece(rows, placed[rows]) for rows in parts]
