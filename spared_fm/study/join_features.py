"""Which row of a feature file belongs to which spot of a slide."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from spared_fm.errors import InputError
from spared_fm.slides.featurejoin import join_barcodes, join_places, shift_and_spread
from spared_fm.store.embeddings import slide_record
from spared_fm.store.nodes import read_elem

if TYPE_CHECKING:
    from pathlib import Path

    from spared_fm.slides.featurefiles import FeatureFile
    from spared_fm.store.layout import Layout

TOLERANCE = 0.25
"""Share of a patch's side that a patch may lie off its spot.

Two patches that overlap by up to half their side can't both be that near to a spot (save at the very border), so the join
is one to one for every tiling in use; and a patch that near shows at least two thirds of the spot's own patch.
"""
OFF_CENTRE = 0.05  # share of a patch's side: patches cut at the spots are off by rounding to pixels only
SAME_PATCH = 1.5
"""Largest ratio of a patch's side to what was asked for: tools that go by magnification are off by less than that."""
PIXELS = ("image", "spots", "ignore")


@dataclasses.dataclass(frozen=True)
class How:
    """The user's word on how to join; see :func:`spared_fm.study.import_features.import_features`."""

    tolerance_um: float | None = None
    pixels: str = "image"
    patch_level0: float | None = None
    mpp: float | None = None
    min_matched: float = 0.5

    def __post_init__(self) -> None:
        if self.pixels not in PIXELS:
            raise InputError(f"--pixels {self.pixels!r} is not one of {', '.join(PIXELS)}")
        if not 0 <= self.min_matched <= 1:
            raise InputError(f"--min-matched {self.min_matched:g}: give a share of the spots, from 0 to 1")
        for name in ("tolerance_um", "patch_level0", "mpp"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"--{name.replace('_', '-')} {value:g}: give a positive number")


@dataclasses.dataclass(frozen=True)
class Joined:
    """A slide's spots with their rows.

    Attributes
    ----------
    rows
        int64 (n,): row of the file for each spot, -1 where it has none.
    reason
        Why those have none.
    median_um
        Distance of the patches from their spots, None where joined by barcode.
    tolerance_um, side_um
        What was allowed; the side of a patch.
    warnings
        One line each.
    """

    rows: np.ndarray
    reason: str
    median_um: float | None
    tolerance_um: float
    side_um: float
    warnings: list[str]


def join_spots(layout: Layout, slide: str, file: FeatureFile, how: How) -> Joined:
    """Join a slide's spots to the rows of a file, by barcode where the file has barcodes, else by coordinates.

    Raises
    ------
    InputError
        The slide or the file lacks what to join by, the join is ambiguous, or the file seems to be another slide's.
    """
    places, source = file.places, file.path
    frame = _frame(layout, slide, places.unit, how)
    side = how.patch_level0 if how.patch_level0 and places.unit == "px" else places.side
    side_um = side * frame.um if side and frame else places.patch_um
    if not how.patch_level0 and places.patch_um and abs(np.log(side_um / places.patch_um)) > np.log(SAME_PATCH):
        raise InputError(
            f"{source}: its patches are {places.patch_um:.4g} µm wide, but in the pixels of slide {slide} they would be "
            f"{side_um:.4g} µm: its pixels are those of another image (--pixels), or its size is wrong (--patch-level0)"
        )
    tolerance = how.tolerance_um or TOLERANCE * side_um
    warnings: list[str] = []
    median = None
    if file.barcodes is not None:
        rows = join_barcodes(list(read_elem(layout, f"{layout.slide(slide)}/obs").index), file.barcodes, source)
        if how.pixels != "ignore" and frame and places.corners is not None:
            _check_shift(slide, source, frame, places.corners, rows, side_um, tolerance)
        reason = f"no such barcode in {source.name}"
        hint = "another slide's file, or pass --min-matched"
    else:
        if frame is None:
            raise InputError(
                f"{source}: slide {slide} has no coordinates to join it by, or no scale (it has no image): pass --mpp"
            )
        if not side or places.corners is None:
            raise InputError(
                f"{source}: doesn't say how large its patches are; pass --patch-level0, their side in level-0 pixels"
            )
        rows, distance = join_places(frame.spots, frame.to_um(places.corners, side), tolerance, source)
        median = float(np.median(distance[rows >= 0])) if (rows >= 0).any() else None
        reason = f"no patch within {tolerance:.4g} µm in {source.name}"
        hint = (
            f"within {tolerance:.4g} µm (the nearest is {np.median(distance):.4g} µm off): another slide's file, "
            "other pixels (--pixels), or patches not cut at the spots (--tolerance-um, --min-matched)"
        )
        if median is not None and median > OFF_CENTRE * side_um:
            warnings.append(
                f"slide {slide}: the patches of {source.name} were not cut at the spots, they lie {median:.3g} µm off (median)"
            )
    matched = int((rows >= 0).sum())
    if matched < max(1, how.min_matched * len(rows)):
        raise InputError(f"{source}: has only {matched} of {len(rows)} spots of slide {slide}, {hint}")
    return Joined(rows, reason, median, tolerance, side_um, warnings)


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A slide's spots in µm, and how a file's coordinates get there."""

    spots: np.ndarray
    um: float  # µm per unit of the file
    origin: float  # µm from the corner of the image to the zero of the spots' frame

    def to_um(self, corners: np.ndarray, side: float) -> np.ndarray:
        """Centres of patches, µm in the spots' frame."""
        return (corners + side / 2) * self.um - self.origin


def _frame(layout: Layout, slide: str, unit: str, how: How) -> _Frame | None:
    """None for a slide whose spots have no coordinates or no scale."""
    record = slide_record(layout, slide)
    mpp = record["mpp"] or how.mpp  # a slide without an image has none of its own
    if record["spots_digest"] is None or not mpp:
        return None
    image = record["image"] if how.pixels == "image" else None
    scale = image["scale"] if image and image["kind"] != "patches" else 1.0
    level0 = mpp / scale
    spots = np.asarray(read_elem(layout, f"{layout.slide(slide)}/obsm/spatial"), np.float64) * mpp
    # A whole number is the middle of a pixel in the spots' frame, and its corner in those of other tools.
    return _Frame(spots, level0 if unit == "px" else level0 / (how.mpp or level0), mpp / 2)


def _check_shift(
    slide: str, source: Path, frame: _Frame, corners: np.ndarray, rows: np.ndarray, side_um: float, tolerance: float
) -> None:
    """Refuse another section's file: sections share their barcodes, but not where the spots are."""
    shift, spread = shift_and_spread(frame.spots[rows >= 0], frame.to_um(corners[rows[rows >= 0]], 0.0))
    if shift > side_um or spread > tolerance:
        raise InputError(
            f"{source}: its coordinates are not those of slide {slide} ({shift:.4g} µm off, and {spread:.3g} µm among "
            "themselves): another slide's file; if not, say what its pixels are with --pixels"
        )
