"""What position alone is worth: a row that shows leakage, not a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.spatial import cKDTree

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_TARGETS, Head, pack_labels, slide_rows, unpack_labels
from spared_fm.heads.neighbours import check_coords

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Coordinates(Head):
    """The mean target of the ``k`` training spots that lie nearest; features are not looked at.

    Expression is smooth in space, so where spots of one slide are both in training and held out, this scores well
    having seen no tissue. A slide that has training spots is predicted from these; any other slide is laid
    over all training slides, each centred and scaled to variance 1 along x and y.

    Parameters
    ----------
    k
        Number of neighbours; all there are if fewer.

    Attributes
    ----------
    coords_, targets_
        (n, 2) and (n, genes) float64 of the training spots.
    codes_
        (n,) number of each training spot's slide.
    slides_
        Labels of the slides as `pack_labels` packs them.
    """

    name: ClassVar[str] = "coordinates"
    label: ClassVar[str] = "leakage: coordinates only"
    sees: ClassVar[frozenset[str]] = frozenset({"coords"})
    arrays: ClassVar[tuple[str, ...]] = ("coords", "targets", "codes", "slides")

    coords_: NDArray[np.float64]
    targets_: NDArray[np.float64]
    codes_: NDArray[np.int64]
    slides_: NDArray[np.uint8]

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        if self.k < 1:
            raise InputError(f"coordinates k is {self.k}: use 1 or more")
        self.coords_, self.targets_ = check_coords(coords, len(X), self.name), y.astype(np.float64)
        if not np.isfinite(self.targets_).all():
            raise InputError(NAN_TARGETS)
        labels: list[str] = []
        self.codes_ = np.zeros(len(X), dtype=np.int64)
        for label, rows in slide_rows(groups, len(X)):
            self.codes_[rows] = len(labels)
            labels.append(label)
        self.slides_ = pack_labels(labels)

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        xy = check_coords(coords, len(X), self.name)
        known = {label: i for i, label in enumerate(unpack_labels(self.slides_))}
        laid = np.empty_like(self.coords_)
        for code in range(len(known)):
            rows = self.codes_ == code
            laid[rows] = _unit(self.coords_[rows])
        out = np.empty((len(X), self.targets_.shape[1]))
        for label, rows in slide_rows(groups, len(X)):
            if label in known:
                own = self.codes_ == known[label]
                out[rows] = self._nearest(self.coords_[own], self.targets_[own], xy[rows])
            else:
                out[rows] = self._nearest(laid, self.targets_, _unit(xy[rows]))
        return out

    def _nearest(
        self, places: NDArray[np.float64], targets: NDArray[np.float64], wanted: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        k = min(self.k, len(places))
        _, found = cKDTree(places).query(wanted, k=np.arange(1, k + 1))
        return np.mean([targets[neighbour] for neighbour in found.T], axis=0)


def _unit(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions centred and scaled to variance 1 along each axis."""
    std = xy.std(axis=0)
    scaled: NDArray[np.float64] = (xy - xy.mean(axis=0)) / np.where(std > 0, std, 1.0)
    return scaled
