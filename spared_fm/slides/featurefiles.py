"""Feature files that other tools wrote: one vector per patch, with where the patch lies or which spot it is.

=============  ================================================  ==============================================
kind           file                                              where the patch is
=============  ================================================  ==============================================
``trident``    TRIDENT and CLAM: .h5 with ``features`` (n, d)    ``coords`` (n, 2), top-left corner, level-0 px
               or (1, n, d)
``stamp``      STAMP: .h5 with ``feats`` (n, d)                  ``coords`` (n, 2), top-left corner, µm
``slide2vec``  slide2vec: .pt, a tensor (n, d)                   a file beside: ``x`` and ``y``, top-left corner,
                                                                 level-0 px
``hest``       HEST-Benchmark: .h5 with ``embeddings`` (n, d)    ``barcodes`` (n, 1); ``coords`` in level-0 px
=============  ================================================  ==============================================

Layouts as the tools' own writers and documentation have them: TRIDENT ``WSI.extract_patch_features``, CLAM
``extract_features_fp.py``, STAMP ``preprocessing`` 1.0 to 2.x, slide2vec's page "Output Layout" with hs2p's coordinates,
HEST ``bench/benchmark.py``. Vectors are read in blocks of rows and never all at once.
"""

from __future__ import annotations

import dataclasses
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import h5py
import numpy as np

from spared_fm.errors import InputError
from spared_fm.slides.featureplaces import (
    Places,
    find_places,
    pixel_places,
    plain,
    read_json,
    read_places,
    stamp_places,
    text,
)
from spared_fm.slides.slide import READ_ERRORS, first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["KINDS", "FeatureFile", "open_features"]

KINDS = {"trident": "features", "stamp": "feats", "hest": "embeddings", "slide2vec": ""}
"""Kind → the dataset that holds the vectors; slide2vec's file is a bare tensor."""
HEST_PX, HEST_MPP = 224, 0.5
_GAP = 8  # rows read for nothing rather than starting another read


@dataclasses.dataclass
class FeatureFile:
    """An open file of vectors; see :func:`open_features`.

    Attributes
    ----------
    path, kind
        The file, and what wrote it.
    n, dim
        Number and length of the vectors.
    places
        Where the patches lie.
    barcodes
        One per row, where the file has them.
    """

    path: Path
    kind: str
    n: int
    dim: int
    places: Places
    barcodes: list[str] | None
    _slice: Callable[[int, int], np.ndarray]
    _close: Callable[[], None]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read vectors by row of the file, in the order asked for: float32 (len(rows), dim).

        Raises
        ------
        InputError
            The file is damaged there.
        """
        wanted, back = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        found = np.empty((len(wanted), self.dim), np.float32)
        breaks = np.flatnonzero(np.diff(wanted) > _GAP) + 1
        try:
            for run in np.split(np.arange(len(wanted)), breaks):
                if len(run):
                    first = int(wanted[run[0]])
                    found[run] = self._slice(first, int(wanted[run[-1]]) + 1)[wanted[run] - first]
        except READ_ERRORS as error:
            raise InputError(
                f"{self.path}: features can't be read ({first_line(error)}): copy the file again"
            ) from error
        return found[back]

    def close(self) -> None:
        """Close the file."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_features(path: str | Path, kind: str | None = None, coordinates: str | Path | None = None) -> FeatureFile:
    """Open a file of features.

    Parameters
    ----------
    path
        An .h5 or a .pt file. A .pt file is read with ``weights_only=True``: nothing in it is executed.
    kind
        One of :data:`KINDS`; by default what the file's content says.
    coordinates
        The file that has the places, instead of those in `path` or beside it: .npz or .npy with ``x``, ``y`` (as hs2p and
        slide2vec write), .csv with columns ``x``, ``y``, or .h5 with ``coords`` (as TRIDENT and CLAM write); or a folder of
        such files, named like `path`. Paths inside a file are never followed.

    Raises
    ------
    InputError
        The file is missing, damaged or of another layout, or has no places.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise InputError(f"--kind {kind!r} is not one of {', '.join(KINDS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file: check the path")
    try:
        file = _open_tensor(path) if kind == "slide2vec" or path.suffix in (".pt", ".pth") else _open_h5(path, kind)
        try:
            if coordinates is not None or (file.places.corners is None and file.barcodes is None):
                stated = file.places.stated
                file.places = read_places(find_places(path, coordinates), path)
                file.places.stated = stated | file.places.stated
            _check(file)
        except READ_ERRORS:
            file.close()
            raise
    except InputError:
        raise
    except (*READ_ERRORS, pickle.UnpicklingError) as error:
        why = (
            "it holds pickled objects, not a tensor" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        )
        raise InputError(f"{path}: not a readable file of features ({why}): write or copy it again") from error
    return file


def _check(file: FeatureFile) -> None:
    if not file.n or not file.dim:
        raise InputError(f"{file.path}: has no features: leave it out")
    corners = file.places.corners
    if corners is not None:
        if corners.shape != (file.n, 2):
            raise InputError(
                f"{file.path}: {file.n} features but coordinates of shape {corners.shape}: give the file's own coordinates"
            )
        if not np.isfinite(corners).all():
            raise InputError(f"{file.path}: coordinates that are not finite: write the file again")
    if file.barcodes is not None and len(file.barcodes) != file.n:
        raise InputError(f"{file.path}: {file.n} features but {len(file.barcodes)} barcodes: write the file again")
    file.read(np.array([file.n - 1]))  # a truncated file shows here, not midway


# -- the vectors -------------------------------------------------------------------------------------------------------


def _open_h5(path: Path, kind: str | None) -> FeatureFile:
    file = h5py.File(path, "r")
    try:
        names = {kind: KINDS[kind]} if kind else {name: dataset for name, dataset in KINDS.items() if dataset}
        kind = next((name for name, dataset in names.items() if isinstance(file.get(dataset), h5py.Dataset)), None)
        if kind is None:
            raise InputError(
                f"{path}: no features here: looked for {', '.join(names.values())}; the file has "
                f"{', '.join(file) or 'nothing'}: give a file with one vector per patch"
            )
        data = file[KINDS[kind]]
        stacked = data.ndim == 3 and data.shape[0] == 1
        if not stacked and data.ndim != 2:
            raise InputError(f"{path}: {KINDS[kind]} of shape {data.shape}, not (n, d): give one vector per patch")
        places = stamp_places(path, file) if kind == "stamp" else pixel_places(file.get("coords"))
        if kind == "hest":
            places.patch_px, places.patch_um = HEST_PX, HEST_PX * HEST_MPP  # what the benchmark prescribes
        labels = file.get("barcodes", file.get("barcode")) if kind == "hest" else None
        barcodes = None if labels is None else [text(value) for value in np.asarray(labels).reshape(-1)]
    except READ_ERRORS:
        file.close()
        raise

    def read(start: int, stop: int) -> np.ndarray:
        return data[0, start:stop] if stacked else data[start:stop]

    n, dim = data.shape[-2:]
    return FeatureFile(path, kind, n, dim, places, barcodes, read, file.close)


def _open_tensor(path: Path) -> FeatureFile:
    import torch

    # mapped: only the rows that are read come into memory. Files older than torch 1.6 are no zip and can't be.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a pickle's protocol before it refuses the pickle
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(data, torch.Tensor) or data.ndim != 2:
        shape = tuple(data.shape) if isinstance(data, torch.Tensor) else type(data).__name__
        raise InputError(f"{path}: holds {shape}, not a tensor (n, d): give one vector per patch")
    meta = path.with_name(f"{path.stem}.meta.json")
    stated = plain(read_json(meta)) if meta.is_file() else {}
    places = Places(stated=stated)

    def read(start: int, stop: int) -> np.ndarray:
        return data[start:stop].float().numpy()

    return FeatureFile(path, "slide2vec", data.shape[0], data.shape[1], places, None, read, lambda: None)
