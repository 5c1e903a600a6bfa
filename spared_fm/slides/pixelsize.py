"""The size of a pixel in micrometres, as a TIFF's own metadata states it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spared_fm.slides.images import plausible_mpp

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_OME_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_TAG_UNITS = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}  # inch, cm, mm, µm in µm
_MAX_ANISOTROPY = 0.01


def tiff_mpp(tiff: TiffFile, series: TiffPageSeries) -> float | None:
    """µm per level-0 pixel: OME, then the scanner's or ImageJ's own words, then the resolution tags."""
    page = series.levels[0].keyframe
    for found in (_ome_mpp(tiff, series), _described_mpp(tiff, page), _tag_mpp(page)):
        if found is not None and (mpp := plausible_mpp(found)) is not None:
            return mpp
    return None


def _ome_mpp(tiff: TiffFile, series: TiffPageSeries) -> float | None:
    if not tiff.is_ome:
        return None
    # read with a pattern, not an XML parser: the text comes from the file and may be hostile
    images = re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", tiff.ome_metadata or "")
    if not images:
        return None
    index = next(i for i, other in enumerate(tiff.series) if other is series)
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', images[index if index < len(images) else 0]))
    sizes = []
    for axis in "XY":
        unit = _OME_UNITS.get(attributes.get(f"PhysicalSize{axis}Unit", "µm").replace("&#181;", "µ"))
        try:
            sizes.append(float(attributes[f"PhysicalSize{axis}"]) * (unit or 0.0))
        except (KeyError, ValueError):
            return None
    return _isotropic(*sizes)


def _described_mpp(tiff: TiffFile, page: TiffPage) -> float | None:
    if tiff.is_svs and (match := re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description)):
        return float(match[1])
    if tiff.is_imagej and tiff.imagej_metadata:
        unit = str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ")
        if unit in {"micron", "microns", "um", "µm", "μm"}:
            return _isotropic(*(1 / r if r else 0.0 for r in page.get_resolution()))
    return None


def _tag_mpp(page: TiffPage) -> float | None:
    unit = _TAG_UNITS.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    if unit is None or "XResolution" not in page.tags:
        return None
    return _isotropic(*(unit / r if r else 0.0 for r in page.get_resolution()))


def _isotropic(x: float, y: float) -> float | None:
    """Return the pixel size, or None where x and y disagree: such a tag isn't a measurement of a slide."""
    return (x + y) / 2 if x > 0 and abs(x / y - 1 if y else 1) <= _MAX_ANISOTROPY else None
