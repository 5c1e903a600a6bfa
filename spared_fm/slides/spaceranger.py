"""Read the `outs/` folder of Space Ranger 1, 2 and 3."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spared_fm.errors import InputError
from spared_fm.slides import checks
from spared_fm.slides.images import image_size, open_image
from spared_fm.slides.mpp import mpp_candidates
from spared_fm.slides.slide import READ_ERRORS, SlideData, array_positions, assemble, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

__all__ = ["find_outs", "read_outs_slide"]

_MATRIX = "filtered_feature_bc_matrix"
#: Space Ranger 2 renamed the file when it added the header; newer runs of Visium HD write parquet.
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


@dataclass
class _Outs:
    """What an `outs/` folder holds.

    Attributes
    ----------
    adata
        Counts as read: obs = barcodes, var with ``gene_ids``.
    positions
        One row per spot of the array, also those not under tissue; index = barcode; columns ``in_tissue``,
        ``array_row``, ``array_col`` (int64), ``x``, ``y`` (float64, full-resolution pixels).
    scalefactors
        The numbers of ``scalefactors_json.json``; empty when there is none.
    hires, lowres
        The downscaled images, None when absent.
    matrix_file, positions_file
        For messages.
    """

    adata: AnnData
    positions: pd.DataFrame
    scalefactors: dict[str, float]
    hires: Path | None
    lowres: Path | None
    matrix_file: Path
    positions_file: Path


def find_outs(folder: Path) -> Path | None:
    """Return `folder` or its `outs/`, whichever is laid out as Space Ranger does, or None."""
    for candidate in (folder, folder / "outs"):
        if (candidate / "spatial").is_dir() and _matrix(candidate) is not None:
            return candidate
    return None


def read_outs_slide(
    outs: Path, slide: str | None = None, image: Path | None = None, in_tissue_only: bool = True
) -> SlideData:
    """Read the slide of an `outs/` folder.

    Parameters
    ----------
    outs
        What :func:`find_outs` returned.
    slide
        Its id. Default: the name of the folder above `outs/`.
    image
        The full-resolution image. Default: the hires image, else the lowres one, else none.
    in_tissue_only
        Drop spots that are not under tissue.
    """
    home = outs.resolve()
    slide_id = checks.check_slide_id(slide or (home.parent.name if home.name == "outs" else home.name))
    found = _read_outs(outs)
    barcodes = found.adata.obs_names.astype(str)
    checks.check_barcodes(barcodes, found.matrix_file)
    checks.check_barcodes(found.positions.index, found.positions_file)
    counts = checks.raw_counts(found.adata.X, barcodes, found.adata.var_names, found.matrix_file)
    spots = _match(barcodes, found)
    if in_tissue_only:
        under = (spots["in_tissue"] == 1).to_numpy()
        if not under.any():
            raise InputError(f"{found.positions_file}: in_tissue is 1 for no spot of the matrix: check it")
        counts, spots, barcodes = counts[under], spots[under], barcodes[under]
    xy = checks.check_coordinates(spots[["x", "y"]], len(spots), barcodes, found.positions_file)
    image, kind, scale = _choose_image(found, image, outs)
    if image is not None:
        checks.check_inside(xy, scale, image_size(image), image)
    # spots beside the tissue are good neighbours too
    grid = array_positions(found.positions, found.positions[["x", "y"]])
    return SlideData(
        id=slide_id,
        adata=assemble(counts, spots[["in_tissue", "array_row", "array_col"]], barcodes, found.adata.var, xy),
        image=image,
        image_scale=scale,
        image_kind=kind,
        mpp_candidates=mpp_candidates({}, found.scalefactors, grid),
        scalefactors=found.scalefactors,
        thumbnails={
            name: _whole_image(file)
            for name, file in (("hires", found.hires), ("lowres", found.lowres))
            if file is not None and f"tissue_{name}_scalef" in found.scalefactors
        },
    )


def _match(barcodes: pd.Index, found: _Outs) -> pd.DataFrame:
    """Return the positions of the matrix's spots, in the matrix's order."""
    lost = barcodes[~barcodes.isin(found.positions.index)]
    if len(lost):
        known = found.positions.index[:1].to_list()
        raise InputError(
            f"{found.positions_file}: {len(lost)} of the {len(barcodes)} barcodes of "
            f"{found.matrix_file.name} have no position, e.g. {lost[0]!r} (the file starts with {known}): "
            "take both files from one run"
        )
    return found.positions.loc[barcodes]


def _choose_image(found: _Outs, fullres: Path | None, outs: Path) -> tuple[Path | None, str, float]:
    if fullres is not None:
        return fullres, "fullres", 1.0
    for kind, file in (("hires", found.hires), ("lowres", found.lowres)):
        if file is not None:
            scale = found.scalefactors.get(f"tissue_{kind}_scalef", 0.0)
            if not 0 < scale < np.inf:
                raise InputError(
                    f"{outs / 'spatial' / 'scalefactors_json.json'}: no tissue_{kind}_scalef for "
                    f"{file.name}: copy it from the run, or pass the full-resolution image as image"
                )
            return file, kind, scale
    return None, "none", 1.0


def _read_outs(outs: Path) -> _Outs:
    matrix_file = _matrix(outs)
    if matrix_file is None:
        raise InputError(f"{outs}: no {_MATRIX}.h5 and no folder {_MATRIX}: give Space Ranger's outs folder")
    spatial = outs / "spatial"
    positions_file = next((spatial / name for name in _POSITIONS if (spatial / name).is_file()), None)
    if positions_file is None:
        raise InputError(f"{spatial}: no spot positions, looked for {', '.join(_POSITIONS)}: copy them there")
    return _Outs(
        adata=_read_matrix(matrix_file),
        positions=_read_positions(positions_file),
        scalefactors=_read_scalefactors(spatial / "scalefactors_json.json"),
        hires=_image(spatial, "tissue_hires_image"),
        lowres=_image(spatial, "tissue_lowres_image"),
        matrix_file=matrix_file,
        positions_file=positions_file,
    )


def _matrix(outs: Path) -> Path | None:
    """Return the HDF5 file, else the MTX folder. Downloads from 10x carry the sample's name in front."""
    for pattern in (f"{_MATRIX}.h5", f"*_{_MATRIX}.h5"):
        files = sorted(outs.glob(pattern))
        if len(files) > 1:
            raise InputError(f"{outs}: several matrices ({', '.join(f.name for f in files)}): keep one")
        if files:
            return files[0]
    folder = outs / _MATRIX
    return folder if folder.is_dir() else None


def _image(spatial: Path, stem: str) -> Path | None:
    return next((p for s in ("png", "jpg", "jpeg") if (p := spatial / f"{stem}.{s}").is_file()), None)


def _read_matrix(path: Path) -> AnnData:
    import scanpy as sc  # here, because it takes seconds to import and only this layout needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # duplicate gene names: made unique by the caller
            if path.is_dir():
                return sc.read_10x_mtx(path, make_unique=False, cache=False)
            return sc.read_10x_h5(path)
    except FileNotFoundError as error:
        missing = error.filename or error
        raise InputError(
            f"{path}: incomplete, {missing} is missing: an MTX folder needs matrix.mtx.gz, features.tsv.gz "
            "and barcodes.tsv.gz"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # scanpy raises Exception itself for a dataset that is missing
        raise InputError(
            f"{path}: not a readable 10x count matrix ({first_line(error)}): copy it again from its source"
        ) from error


def _read_positions(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with path.open(encoding="utf-8") as file:
                headed = file.readline().startswith("barcode")
            table = pd.read_csv(path, header=0 if headed else None)
            if not headed:
                table = table.set_axis(_COLUMNS, axis=1)  # refuses any other number of columns
        table = table.set_index(table["barcode"].astype(str))
        numbers = table[_COLUMNS[1:]].astype(np.float64)
        positions = numbers[_COLUMNS[1:4]].astype(np.int64)
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: not a table of spot positions ({first_line(error)}): expected {', '.join(_COLUMNS)}"
        ) from error
    # scanpy's order is x, y; Space Ranger writes row (y) first
    positions["x"] = numbers["pxl_col_in_fullres"]
    positions["y"] = numbers["pxl_row_in_fullres"]
    return positions


def _read_scalefactors(path: Path) -> dict[str, float]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): float(v) for k, v in content.items() if isinstance(v, int | float)}
    except FileNotFoundError:
        return {}
    except READ_ERRORS as error:
        raise InputError(f"{path}: not scale factors in JSON ({first_line(error)}): copy it again") from error


def _whole_image(path: Path) -> np.ndarray:
    with open_image(path) as reader:
        level = reader.levels[0]
        return np.array(reader.read(0, 0, 0, level.width, level.height))
