"""Lay a grid of spots, in micrometres, over the tissue of a slide that has none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.slides.checks import check_slide_id
from spared_fm.slides.images import PLAUSIBLE_MPP, open_image
from spared_fm.slides.slide import SlideData
from spared_fm.slides.tissue import find_tissue

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEFAULT_MIN_TISSUE", "DEFAULT_PATCH_UM", "grid_points", "read_plain_slide"]

DEFAULT_PATCH_UM = 112.0
DEFAULT_MIN_TISSUE = 0.5


def grid_points(
    width: int, height: int, mpp: float, patch_um: float, spacing_um: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a square grid whose patches all lie inside the image, row by row.

    The first patch's corner is the image's corner, so the grid depends on the image's size and mpp only.

    Parameters
    ----------
    width, height
        Of level 0, in pixels.
    mpp
        µm per level-0 pixel.
    patch_um, spacing_um
        Side of the patches and distance of their centres, µm.

    Returns
    -------
    position : numpy.ndarray
        int64 (n, 2): column and row on the grid.
    xy : numpy.ndarray
        float64 (n, 2): centres in level-0 pixels, whole numbers at pixel centres.
    """
    columns, rows = (
        max(0, math.floor((size * mpp - patch_um) / spacing_um * (1 + 1e-12)) + 1) for size in (width, height)
    )
    row, column = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    position = np.column_stack([column, row])
    return position, (position * spacing_um + patch_um / 2) / mpp - 0.5


def read_plain_slide(
    path: Path,
    slide_id: str,
    *,
    mpp: float | None = None,
    spacing_um: float | None = None,
    min_tissue: float = DEFAULT_MIN_TISSUE,
    patch_um: float = DEFAULT_PATCH_UM,
) -> SlideData:
    """Read a slide of which there is an image only: spots are laid on its tissue.

    Parameters
    ----------
    path
        The image.
    slide_id
        The slide's id.
    mpp
        µm per level-0 pixel; by default what the image says.
    spacing_um
        Distance of the spots, µm; by default `patch_um`, so that patches touch.
    min_tissue
        The least share of tissue in a patch, 0 to 1; 0 keeps every point and looks for no tissue.
    patch_um
        Side of the square that `min_tissue` is asked of, µm.

    Returns
    -------
    SlideData
        ``adata`` has no genes and no X; obs: ``in_tissue`` (1), ``array_row``, ``array_col``, ``tissue_fraction``; barcodes are
        ``x<column>y<row>``. ``metadata`` says how the grid was made.

    Raises
    ------
    InputError
        There is no mpp, no tissue, no grid point on tissue, or an option has no meaning.
    """
    check_slide_id(slide_id)
    spacing_um = patch_um if spacing_um is None else spacing_um
    for name, value in (("--spacing-um", spacing_um), ("--patch-um", patch_um)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value:g}: give a positive number of micrometres")
    if not 0 <= min_tissue <= 1:
        raise InputError(f"--min-tissue {min_tissue:g}: give a share between 0 and 1")
    with open_image(path) as reader:
        known = mpp if mpp is not None else reader.mpp
        low, high = PLAUSIBLE_MPP
        if known is None:
            raise InputError(f"{path}: the image doesn't say how wide a pixel is: pass --mpp (µm per pixel)")
        if not low <= known <= high:
            raise InputError(f"{path}: --mpp {known:g}: give µm per pixel, between {low:g} and {high:g}")
        top = reader.levels[0]
        position, xy = grid_points(top.width, top.height, known, patch_um, spacing_um)
        if not len(xy):
            raise InputError(
                f"{path}: the image is {top.width * known:.0f}×{top.height * known:.0f} µm, smaller than a patch of "
                f"{patch_um:g} µm: check the mpp ({known:g}), or give a smaller patch"
            )
        fraction, threshold = np.ones(len(xy)), None
        if min_tissue > 0:
            tissue = find_tissue(reader, known)
            fraction, threshold = tissue.fraction(xy, patch_um / known), tissue.threshold
    keep = fraction >= min_tissue
    if not keep.any():
        raise InputError(
            f"{path}: none of {len(xy)} grid points has {min_tissue:.0%} tissue in its patch: lower --min-tissue or --spacing-um"
        )
    position, xy, fraction = position[keep], xy[keep], fraction[keep]
    obs = pd.DataFrame(
        {"in_tissue": 1, "array_row": position[:, 1], "array_col": position[:, 0]},
        index=[f"x{column}y{row}" for column, row in position.tolist()],
    )
    if threshold is not None:
        obs["tissue_fraction"] = fraction
    grid: dict[str, Any] = {
        "grid_spacing_um": spacing_um,
        "grid_patch_um": patch_um,
        "grid_min_tissue": min_tissue,
        "grid_mpp": known,
    }
    if threshold is not None:
        grid |= {"grid_tissue": "optical density, Otsu", "grid_tissue_threshold": threshold}
    return SlideData(
        id=slide_id,
        adata=ad.AnnData(obs=obs, var=pd.DataFrame(index=pd.Index([], dtype=str)), obsm={"spatial": xy}),
        image=path,
        image_kind="fullres",
        metadata={**grid, "spot_pitch_um": spacing_um},
    )
