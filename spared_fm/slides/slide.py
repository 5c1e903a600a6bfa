"""What every reader of slides returns, and the steps they share."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from spared_fm.slides.checks import gene_names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["READ_ERRORS", "SlideData", "array_positions", "assemble", "first_line"]

#: What anndata, scanpy, pandas, h5py and json raise for a file that is damaged or isn't what its name says.
READ_ERRORS = (
    OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, EOFError, ArithmeticError,
    ImportError, zlib.error,
)  # fmt: skip


@dataclass
class SlideData:
    """One slide as read from disk, before it enters a store.

    Attributes
    ----------
    id
        Slide id, ``[A-Za-z0-9._-]+``.
    adata
        obs index = unique barcodes, with ``in_tissue``, ``array_row``, ``array_col`` where known; var index =
        unique gene names; X = raw counts, CSR, int32 where all are whole numbers, else float32;
        ``obsm['spatial']`` = float64 (n, 2), x and y in pixels, absent where the file has no coordinates. An
        .h5ad's own layers are kept; no uns.
    image
        The image to cut patches from, or None.
    image_scale
        Level-0 pixels of `image` per coordinate pixel; 1.0 when the coordinates are pixels of it.
    image_kind
        ``"fullres"``, ``"hires"``, ``"lowres"``, ``"patches"`` (a file of patches cut before, see
        :mod:`spared_fm.slides.patchfiles`) or ``"none"``.
    mpp_candidates
        µm per *coordinate* pixel by source (``metadata``, ``array``, ``spot``), for
        :func:`spared_fm.slides.mpp.resolve_mpp`.
    patient
        From ``obs['patient']`` or the metadata, None when neither says.
    scalefactors
        As Space Ranger names them.
    metadata
        ``uns['spatial'][<slide>]['metadata']`` as plain Python values.
    thumbnails
        uint8 (h, w, 3) by name (``hires``, ``lowres``), as far as the source has them.
    warnings
        One line each, for the user.
    """

    id: str
    adata: ad.AnnData
    image: Path | None = None
    image_scale: float = 1.0
    image_kind: str = "none"
    mpp_candidates: dict[str, float] = field(default_factory=dict)
    patient: str | None = None
    scalefactors: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    thumbnails: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def assemble(
    counts: Any, obs: pd.DataFrame, barcodes: pd.Index, var: pd.DataFrame, xy: np.ndarray | None
) -> ad.AnnData:
    """Build a slide's AnnData from checked parts, with nothing else in it.

    Parameters
    ----------
    counts
        (n_spots, n_genes) CSR.
    obs, var
        Columns to keep; their indexes are replaced.
    barcodes
        Index of obs.
    xy
        (n_spots, 2) float64, or None.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns where a gene's own name looks like a suffix of ours
        genes = gene_names(var.index, var.get("gene_ids"))
    obs, var = obs.copy(), var.copy()
    obs.index, var.index = pd.Index(barcodes, name=None), pd.Index(genes, name=None)
    return ad.AnnData(X=counts, obs=obs, var=var, obsm={} if xy is None else {"spatial": xy})


def array_positions(obs: pd.DataFrame, xy: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return (array_row, array_col, xy) as float64 for `mpp_candidates`, or None where they are unknown."""
    if xy is None or not {"array_row", "array_col"} <= set(obs.columns):
        return None
    row, col = (
        pd.to_numeric(obs[name].astype(object), errors="coerce").to_numpy(np.float64)
        for name in ("array_row", "array_col")
    )
    return row, col, np.asarray(xy, np.float64)


def first_line(error: Exception) -> str:
    """Return an error's first line, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
