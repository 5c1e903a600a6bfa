"""Find tissue on a thumbnail of a slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from spared_fm.errors import InputError
from spared_fm.slides.images import thumbnail

if TYPE_CHECKING:
    from spared_fm.slides.images import ImageReader

__all__ = ["Tissue", "colour_density", "find_tissue", "otsu"]

MASK_UM = 8.0  # a mask pixel: about one nucleus
MAX_MASK_PX = 8192
MIN_AREA_UM2 = 50_000.0  # a quarter of a millimetre squared: smaller pieces are debris
_DARKEST = 16.0  # below this a channel holds noise and its logarithm means nothing
_FLOOR, _CEILING = 0.03, 0.07  # between the noise of JPEG-coded glass and pale eosin


@dataclass(frozen=True)
class Tissue:
    """Where a slide has tissue.

    Attributes
    ----------
    mask
        bool (h, w).
    scale
        Mask pixels per level-0 pixel.
    threshold
        The colour density above which a pixel was taken for tissue.
    """

    mask: np.ndarray
    scale: float
    threshold: float

    def fraction(self, xy: np.ndarray, side: float) -> np.ndarray:
        """Share of tissue in squares around points.

        Parameters
        ----------
        xy
            (n, 2) centres in level-0 pixels, whole numbers at pixel centres.
        side
            Side of the square in level-0 pixels.

        Returns
        -------
        numpy.ndarray
            float64 (n,), 0 to 1; what lies beyond the image counts as glass.
        """
        height, width = self.mask.shape
        sums = np.zeros((height + 1, width + 1))
        sums[1:, 1:] = self.mask.cumsum(axis=0).cumsum(axis=1)
        centre = (np.asarray(xy, np.float64) + 0.5) * self.scale
        half = max(side * self.scale / 2, 0.5)  # a square smaller than a mask pixel asks that pixel
        low, high = np.rint(centre - half).astype(int), np.rint(centre + half).astype(int)
        area = np.prod(np.maximum(high - low, 1), axis=1)
        limit = (width, height)
        (x0, y0), (x1, y1) = np.clip(low, 0, limit).T, np.clip(high, 0, limit).T
        return (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / area


def colour_density(rgb: np.ndarray) -> np.ndarray:
    """How much more of one colour than of another is absorbed.

    Optical density (-log10 of the light let through, Beer–Lambert) is proportional to the amount of stain. Its largest
    minus its smallest value over red, green and blue is positive for every stain and 0 for what is neutral: glass,
    shadows, dust, a black border. A brighter or dimmer lamp doesn't change it, nor does the unit of light.

    Parameters
    ----------
    rgb
        (h, w, 3), 0 to 255.

    Returns
    -------
    numpy.ndarray
        float32 (h, w), at least 0.
    """
    density = -np.log10(np.clip(rgb, _DARKEST, 255.0).astype(np.float32) / 255.0)
    return np.ptp(density, axis=2)


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Threshold that separates two classes best: the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[1:-1][np.argmax(np.nan_to_num(between))])


def find_tissue(reader: ImageReader, mpp: float, *, min_area_um2: float = MIN_AREA_UM2) -> Tissue:
    """Find the tissue of a slide on a thumbnail of 8 µm per pixel.

    A pixel is tissue where its :func:`colour_density` is above Otsu's threshold, kept between 0.03 and 0.07 so that
    neither a blank slide nor one full of tissue is cut in two. Gaps of a few pixels are closed, holes and pieces
    smaller than `min_area_um2` removed. Coloured pen marks are stained too, and stay.

    Parameters
    ----------
    reader
        An open image.
    mpp
        µm per level-0 pixel.
    min_area_um2
        The smallest piece of tissue to keep, µm².

    Raises
    ------
    InputError
        There is no tissue.
    """
    top = reader.levels[0]
    longest = max(top.width, top.height)
    thumb, scale = thumbnail(reader, max(1, min(round(longest * min(1.0, mpp / MASK_UM)), MAX_MASK_PX)))
    smooth = ndimage.gaussian_filter(thumb.astype(np.float32), (1, 1, 0))
    density = colour_density(smooth)
    threshold = float(np.clip(otsu(density), _FLOOR, _CEILING))
    mask = ndimage.binary_closing(np.pad(density > threshold, 2), np.ones((3, 3)), iterations=2)[2:-2, 2:-2]
    smallest = min_area_um2 * (scale / mpp) ** 2  # in mask pixels
    mask = _without_small(mask, smallest)
    mask = ~_without_small(~mask, smallest)
    if not mask.any():
        raise InputError(
            f"{reader.path}: no tissue found (no piece of {min_area_um2:,.0f} µm² is stained): check that it is not a blank "
            "slide or a label, and its mpp; a grid over all of it: min_tissue 0"
        )
    return Tissue(mask, scale, threshold)


def _without_small(mask: np.ndarray, smallest: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    keep = np.bincount(labels.ravel()) >= smallest
    keep[0] = False
    return keep[labels]
