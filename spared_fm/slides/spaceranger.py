"""Read the `outs/` folder of Space Ranger 1, 2 and 3."""

from __future__ import annotations

import json
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

__all__ = ["Outs", "find_outs", "read_outs"]

_MATRIX = "filtered_feature_bc_matrix"
#: Space Ranger 2 renamed the file when it added the header; newer runs of Visium HD write parquet.
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
READ_ERRORS = (
    OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, EOFError, ArithmeticError,
    ImportError, zlib.error,
)  # fmt: skip


@dataclass
class Outs:
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


def read_outs(outs: Path) -> Outs:
    """Read matrix, positions, scale factors and where the images are.

    Parameters
    ----------
    outs
        A folder for which :func:`find_outs` returned itself.

    Raises
    ------
    InputError
        A file is missing, damaged or doesn't belong to the others.
    """
    matrix_file = _matrix(outs)
    if matrix_file is None:
        raise InputError(f"{outs}: no {_MATRIX}.h5 and no folder {_MATRIX}: give Space Ranger's outs folder")
    spatial = outs / "spatial"
    positions_file = next((spatial / name for name in _POSITIONS if (spatial / name).is_file()), None)
    if positions_file is None:
        raise InputError(f"{spatial}: no spot positions, looked for {', '.join(_POSITIONS)}: copy them there")
    return Outs(
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
    except READ_ERRORS as error:
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
            table = pd.read_csv(path) if headed else pd.read_csv(path, header=None, names=_COLUMNS)
        table = table.set_index(table["barcode"].astype(str))
        numbers = table[_COLUMNS[1:]].astype(np.float64)
        positions = numbers[_COLUMNS[1:4]].astype(np.int64)
    except ImportError as error:
        raise InputError(
            f"{path}: reading parquet needs pyarrow: pip install pyarrow, or convert to csv"
        ) from error
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
        raise InputError(
            f"{path}: not a JSON table of scale factors ({first_line(error)}): copy it again"
        ) from error


def first_line(error: Exception) -> str:
    """Return an error's first line, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
