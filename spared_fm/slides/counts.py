"""Read slides: counts, spot coordinates and where their image is, from any of the layouts we know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spared_fm.errors import InputError
from spared_fm.slides.grid import DEFAULT_MIN_TISSUE, read_plain_slide
from spared_fm.slides.h5ad import read_h5ad_slides
from spared_fm.slides.images import WHOLE_SLIDE_SUFFIXES
from spared_fm.slides.slide import SlideData
from spared_fm.slides.spaceranger import find_outs, read_outs_slide

__all__ = ["SlideData", "read_slides"]

_IMAGE_SUFFIXES = WHOLE_SLIDE_SUFFIXES | {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".btf"}


def read_slides(
    path: str | Path,
    *,
    slide: str | None = None,
    image: str | Path | None = None,
    positions_in_tissue_only: bool = True,
    spacing_um: float | None = None,
    min_tissue: float = DEFAULT_MIN_TISSUE,
    mpp: float | None = None,
) -> list[SlideData]:
    """Read every slide at `path`.

    Parameters
    ----------
    path
        One of

        - a folder with ``counts.h5ad`` and ``image.*`` (scanpy's Visium convention in ``uns['spatial']``);
        - Space Ranger's ``outs/``, or the folder above it, of versions 1, 2 and 3;
        - an ``.h5ad`` with counts only: one slide, or several by ``obs['slide_id']``. It may lack
          ``obsm['spatial']``; such a slide has no coordinates;
        - an image, or a folder with an image and nothing else we know: spots are laid on its tissue, see
          :func:`spared_fm.slides.grid.read_plain_slide`.
    slide
        The slide's id. Default: ``obs['slide_id']``, else the folder above ``outs/``, the folder of
        ``counts.h5ad``, or the file's stem. Where a file holds several slides: the one to read.
    image
        The full-resolution image, the one the coordinates are pixels of. Default: ``image.*``; Space Ranger's
        hires image, else its lowres image; else none.
    positions_in_tissue_only
        Drop Space Ranger's spots that are not under tissue.
    spacing_um, min_tissue
        Of an image without spots: distance of the grid's points, µm (by default a patch's side, 112), and the least share of
        tissue in a patch.
    mpp
        µm per pixel of an image without spots, where it doesn't say.

    Returns
    -------
    list of SlideData
        In the order of first appearance.

    Raises
    ------
    InputError
        The path is none of these, a file is missing or damaged, or its content can't be right: duplicate
        barcodes, NaN, infinite or negative counts, an empty matrix, barcodes without a position, coordinates
        that are missing or not finite, an image that the spots don't fit in, an id that can't be one.
    """
    path = Path(path)
    image = None if image is None else Path(image)
    grid: dict[str, Any] = {"mpp": mpp, "spacing_um": spacing_um, "min_tissue": min_tissue}
    if path.is_file():
        if path.suffix.lower() in _IMAGE_SUFFIXES:
            return [read_plain_slide(path, slide or path.stem, **grid)]
        if path.suffix != ".h5ad":
            raise InputError(f"{path}: not an .h5ad or an image: give one, or a folder with one or with outs/")
        return read_h5ad_slides(path, path.stem, slide, image)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder: check the path")
    counts = path / "counts.h5ad"
    if counts.is_file():
        return read_h5ad_slides(counts, path.resolve().name, slide, image or _image_beside(path))
    outs = find_outs(path)
    if outs is not None:
        return [read_outs_slide(outs, slide, image, positions_in_tissue_only)]
    images = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in _IMAGE_SUFFIXES)
    if len(images) == 1:
        return [read_plain_slide(images[0], slide or path.resolve().name, **grid)]
    raise InputError(
        f"{path}: no slide here: looked for counts.h5ad (with image.*), and for spatial/ beside "
        "filtered_feature_bc_matrix.h5 or filtered_feature_bc_matrix/, in the folder and in its outs/, and for one image "
        f"({len(images)} found; give the image itself where there are several)"
    )


def _image_beside(folder: Path) -> Path | None:
    images = sorted(p for p in folder.glob("image.*") if p.is_file())
    if len(images) > 1:
        names = ", ".join(p.name for p in images)
        raise InputError(f"{folder}: several images ({names}): pass the one the coordinates belong to as image")
    return images[0] if images else None
