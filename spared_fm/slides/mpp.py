"""How many micrometres a pixel is wide: several witnesses, one answer, and a warning when they disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.slides.images import PLAUSIBLE_MPP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

__all__ = ["Mpp", "array_pitch", "mpp_candidates", "resolve_mpp"]

_LOW, _HIGH = PLAUSIBLE_MPP  # any source is believed inside these, in µm per pixel
DISAGREEMENT = 0.03
#: Centre-to-centre distance of neighbouring spots in µm, by layout: 10x Visium, legacy ST arrays.
PITCH_UM = {"hex": 100.0, "square": 200.0}
_LEGACY_ST_MAX_SPAN = 80  # legacy ST arrays are 33 × 35; a wider square grid is binned data of another pitch
_HEX_STEPS = ((0, 2), (1, 1), (1, -1))
_SQUARE_STEPS = ((0, 1), (1, 0))


@dataclass(frozen=True)
class Mpp:
    """The resolution of a slide's coordinates.

    Attributes
    ----------
    value
        µm per pixel of the frame of the spots' coordinates.
    source
        Which candidate it is: ``given``, ``metadata``, ``image``, ``array`` or ``spot``.
    candidates
        Every source that said something, in the same unit.
    warnings
        One line for each source that disagrees by more than 3 %, or that was not believed.
    """

    value: float
    source: str
    candidates: dict[str, float]
    warnings: tuple[str, ...]


def resolve_mpp(
    slide_id: str,
    *,
    given: float | None = None,
    metadata: float | None = None,
    image: float | None = None,
    array: float | None = None,
    spot: float | None = None,
) -> Mpp:
    """Choose a slide's µm per pixel: the first source that spoke, in the order of the arguments.

    All are µm per pixel *of the spots' coordinates*: multiply what a downscaled image says of itself by
    coordinate→image scale first.

    Parameters
    ----------
    slide_id
        Named in messages.
    given
        What the user said (``--mpp``).
    metadata
        What the counts' metadata says of these coordinates (``um_per_px``). It comes before the image's own
        tags, because those survive a resize by an editor that doesn't know them.
    image
        What the image file's own tags say.
    array
        From the distance of neighbouring spots; see :func:`mpp_candidates`.
    spot
        From a spot's diameter whose physical size was declared.

    Returns
    -------
    Mpp

    Raises
    ------
    InputError
        `given` is outside 0.05–20 µm, or there is no believable source at all.
    """
    if given is not None and not _believable(given):
        raise InputError(f"{slide_id}: --mpp {given:g}: give µm per pixel, between {_LOW:g} and {_HIGH:g}")
    spoke = {"given": given, "metadata": metadata, "image": image, "array": array, "spot": spot}
    candidates = {name: float(value) for name, value in spoke.items() if value is not None}
    believed = {name: value for name, value in candidates.items() if _believable(value)}
    warnings = [
        f"{slide_id}: mpp {value:g} from {name}  is not between {_LOW:g} and {_HIGH:g}, ignored"
        for name, value in candidates.items()
        if name not in believed
    ]
    if not believed:
        raise InputError(
            f"{slide_id}: no mpp: neither the metadata, the image nor the array says how wide a pixel is: "
            "pass --mpp (µm per pixel of the spot coordinates)"
        )
    source, value = next(iter(believed.items()))
    warnings += [
        f"{slide_id}: mpp {value:.4g} from {source} and {other:.4g} from {name} differ by "
        f"{abs(other / value - 1):.1%}; {source} is used"
        for name, other in believed.items()
        if abs(other / value - 1) > DISAGREEMENT
    ]
    return Mpp(value, source, candidates, tuple(warnings))


def array_pitch(array_row: ArrayLike, array_col: ArrayLike, xy: ArrayLike) -> tuple[float, str] | None:
    """Median distance in pixels between spots that are neighbours on the array, and the array's layout.

    Space Ranger numbers a hexagonal array so that row + column is always even: a spot's six neighbours are
    two columns away in its row, or one row and one column away. Anything else is taken as a square grid.

    Parameters
    ----------
    array_row, array_col
        (n,) positions on the array, whole numbers; spots where one isn't finite are left out.
    xy
        (n, 2) pixel coordinates.

    Returns
    -------
    tuple of float and {"hex", "square"}, or None
        None when fewer than two pairs of spots are neighbours.
    """
    positions = np.column_stack([np.asarray(array_row, np.float64), np.asarray(array_col, np.float64)])
    pixels = np.asarray(xy, np.float64)
    known = np.isfinite(positions).all(axis=1) & np.isfinite(pixels).all(axis=1)
    grid = np.rint(positions[known]).astype(np.int64)
    grid, first = np.unique(grid, axis=0, return_index=True)  # two spots at one position: the first counts
    pixels = pixels[known][first]
    layout = "hex" if len(grid) and np.ptp(grid.sum(axis=1) % 2) == 0 else "square"
    distances = _neighbour_distances(grid, pixels, _HEX_STEPS if layout == "hex" else _SQUARE_STEPS)
    if len(distances) < 2:
        return None
    return float(np.median(distances)), layout


def mpp_candidates(
    metadata: Mapping[str, Any],
    scalefactors: Mapping[str, float],
    array: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
) -> dict[str, float]:
    """Collect what a slide's metadata, array and spots say of its mpp.

    Parameters
    ----------
    metadata
        May hold ``um_per_px``, ``spot_pitch_um`` (centre to centre) and ``spot_diameter_um``, in µm.
    scalefactors
        Space Ranger's. ``microns_per_pixel`` (Visium HD) counts as metadata. ``spot_diameter_fullres`` is
        used only with a declared ``spot_diameter_um``: Space Ranger's is about 65 µm wide, not the spot's 55.
    array
        (array_row, array_col, xy) of as many spots as are known, see :func:`array_pitch`.

    Returns
    -------
    dict
        µm per coordinate pixel by source, any of ``metadata``, ``array``, ``spot``.
    """
    found: dict[str, float] = {}
    stated = _positive(metadata.get("um_per_px")) or _positive(scalefactors.get("microns_per_pixel"))
    if stated:
        found["metadata"] = stated
    pitch = array_pitch(*array) if array is not None else None
    if array is not None and pitch is not None and pitch[0] > 0:
        pitch_um = _positive(metadata.get("spot_pitch_um")) or _default_pitch(pitch[1], array[0], array[1])
        if pitch_um:
            found["array"] = pitch_um / pitch[0]
    diameter = _positive(scalefactors.get("spot_diameter_fullres"))
    diameter_um = _positive(metadata.get("spot_diameter_um"))
    if diameter and diameter_um:
        found["spot"] = diameter_um / diameter
    return found


def _default_pitch(layout: str, array_row: ArrayLike, array_col: ArrayLike) -> float | None:
    axes = np.asarray([array_row, array_col], np.float64)
    span = np.max(np.nanmax(axes, axis=1) - np.nanmin(axes, axis=1))
    return None if layout == "square" and span > _LEGACY_ST_MAX_SPAN else PITCH_UM[layout]


def _neighbour_distances(grid: np.ndarray, pixels: np.ndarray, steps: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Pixel distances of all pairs of spots one step apart; `grid` is (n, 2), unique and sorted."""
    if not len(grid):
        return np.empty(0)
    grid = grid - grid.min(axis=0) + 2  # steps to either side stay positive
    stride = int(grid[:, 1].max()) + 3
    keys = grid[:, 0] * stride + grid[:, 1]
    found = []
    for rows, columns in steps:
        wanted = keys + rows * stride + columns
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        pairs = np.flatnonzero(keys[at] == wanted)
        found.append(np.linalg.norm(pixels[at[pairs]] - pixels[pairs], axis=1))
    return np.concatenate(found)


def _believable(value: float) -> bool:
    return _LOW <= value <= _HIGH


def _positive(value: Any) -> float | None:
    """Return a positive finite float, or None for anything else a metadata field may hold."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
