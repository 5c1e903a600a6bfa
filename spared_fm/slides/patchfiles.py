"""Patches that were cut before: HEST's .h5 and SpaRED's ``obsm['patches_scale_1.0']``, read in blocks of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import h5py
import numpy as np
from anndata.io import read_elem

from spared_fm.errors import InputError
from spared_fm.slides.images import BaseReader, Level
from spared_fm.slides.patches import PatchReader, PatchSpec, UnreadablePatchError
from spared_fm.slides.slide import READ_ERRORS, first_line
from spared_fm.slides.stopwatch import stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["HEST_MPP", "PatchFile", "PatchSource", "StoredPatchReader", "has_patches", "open_patches", "spared_window"]

SPARED_KEY = "patches_scale_1.0"
#: HEST-1k publishes its patches at this resolution and most of its files don't say so.
HEST_MPP = 0.5
_MPP_ATTRIBUTES = ("pixel_size", "target_pixel_size", "mpp")
_SAME = 1e-6


class PatchSource(Protocol):
    """Square patches of one size, one per barcode.

    Attributes
    ----------
    path
        The file.
    n, px
        Number of patches; side of one in pixels.
    mpp
        µm per pixel where the file says, else None.
    barcodes
        One per patch, in the file's order.
    """

    path: Path
    n: int
    px: int
    mpp: float | None
    barcodes: list[str]

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read patches by row of the file: uint8 (len(rows), px, px, 3) RGB."""
        ...


def has_patches(path: Path) -> bool:
    """Whether a file is an HDF5 file with patches in it."""
    try:
        with h5py.File(path, "r") as file:
            return _dataset(file) is not None
    except OSError:
        return False


def open_patches(path: str | Path, slide: str | None = None) -> PatchFile:
    """Open a file of patches.

    Parameters
    ----------
    path
        HEST's .h5 (datasets ``img`` (n, px, px, 3) uint8 and ``barcode``) or an .h5ad of SpaRED's
        (``obsm['patches_scale_1.0']``, uint8 (n, px·px·3), rows of the picture one after the other, RGB).
    slide
        Of a file with ``obs['slide_id']``: the slide whose patches to offer.

    Raises
    ------
    InputError
        The file is missing, damaged or of another layout, or its barcodes are not unique.
    """
    return PatchFile(Path(path), slide)


class PatchFile:
    """An open file of patches; see :func:`open_patches`. Nothing but the rows asked for is read."""

    def __init__(self, path: Path, slide: str | None = None) -> None:
        self.path = path
        self._file: h5py.File | None = None
        try:
            self._file = file = h5py.File(path, "r")
            data = _dataset(file)
            if data is None:
                raise InputError(
                    f"{path}: no patches here: looked for img (n, px, px, 3) with barcode, as HEST writes them, and for "
                    f"obsm[{SPARED_KEY!r}], both uint8"
                )
            self._data = data
            self.px = _side(path, data)
            self._rows, self.barcodes = _barcodes(file, slide)
            if len(self._rows) == len(data) or slide is not None:
                self.n = len(self._rows)
            else:
                raise InputError(f"{path}: {len(self._rows)} barcodes for {len(data)} patches: write the file again")
            if len(set(self.barcodes)) < self.n:
                raise InputError(f"{path}: barcodes occur more than once: make them unique, or name the slide")
            self.mpp = _stated_mpp(data)
            if self.n:
                self.read([self.n - 1])  # a truncated file shows here, not midway
        except READ_ERRORS as error:
            self.close()
            if isinstance(error, InputError):
                raise
            if not path.is_file():
                raise InputError(f"{path}: no such file: check the path") from None
            raise InputError(f"{path}: not a readable file of patches ({first_line(error)}): copy it again") from error

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read patches: uint8 (len(rows), px, px, 3), in the order asked for.

        Raises
        ------
        InputError
            The file is damaged there.
        """
        if self._file is None:
            raise ValueError(f"{self.path}: the file was closed")
        wanted = self._rows[np.asarray(rows, np.int64)]
        unique, back = np.unique(wanted, return_inverse=True)  # HDF5 reads rising rows only
        try:
            run = len(unique) and unique[-1] - unique[0] + 1 == len(unique)
            with stage("read"):
                block = self._data[unique[0] : unique[-1] + 1] if run else self._data[unique]
        except READ_ERRORS as error:
            raise InputError(
                f"{self.path}: patches can't be read ({first_line(error)}): copy the file again"
            ) from error
        return np.asarray(block).reshape(-1, self.px, self.px, 3)[back]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StoredPatchReader:
    """Give stored patches the way :class:`~spared_fm.slides.patches.PatchReader` cuts them from an image.

    A patch of `spec` is the middle of the stored one: exactly ``spec.um`` wide, resampled once to ``spec.px``. A stored patch of
    that very size is returned as it is; a smaller one is refused, since the tissue around it is not there.

    Parameters
    ----------
    source
        The file.
    barcodes
        The slide's spots, in its order; joined with the file's by barcode.
    mpp
        µm per pixel of the stored patches.
    spec
        The patches to return.

    Raises
    ------
    InputError
        The stored patches show less tissue than `spec` asks for.
    """

    def __init__(self, source: PatchSource, barcodes: Sequence[str], mpp: float, spec: PatchSpec) -> None:
        stored_um = source.px * mpp
        if spec.um > stored_um * (1 + _SAME):
            raise InputError(
                f"{source.path}: its patches are {stored_um:.4g} µm wide, {spec.um:g} µm are asked for: "
                f"pass --patch-um {stored_um:.4g} or less, or ingest the image they were cut from"
            )
        self.source, self.spec, self.mpp = source, spec, mpp
        at = {barcode: row for row, barcode in enumerate(source.barcodes)}
        self._barcodes = list(barcodes)
        self._rows = np.array([at.get(barcode, -1) for barcode in barcodes], np.int64)
        self._as_stored = source.px == spec.px and abs(stored_um / spec.um - 1) <= _SAME

    def read(self, places: Sequence[int] | np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Read the patches of spots by their position on the slide: uint8 (n, px, px, 3).

        Raises
        ------
        UnreadablePatchError
            A spot has no patch in the file, or the file is damaged there; its `index` is the first such place.
        """
        rows = self._rows[np.asarray(places, np.int64)]
        if (rows < 0).any():
            index = int(np.argmax(rows < 0))
            barcode = self._barcodes[int(np.asarray(places)[index])]
            raise UnreadablePatchError(f"{self.source.path}: no patch of spot {barcode!r}", index)
        try:
            stored = self.source.read(rows)
        except InputError as error:
            index = next((i for i, row in enumerate(rows) if not self._readable(row)), 0)
            raise UnreadablePatchError(str(error), index) from error
        if out is None:
            out = np.empty((len(rows), self.spec.px, self.spec.px, 3), np.uint8)
        for patch, pixels in zip(out, stored, strict=True):
            if self._as_stored:
                patch[:] = pixels
                continue
            middle = (self.source.px - 1) / 2
            PatchReader(_Stored(self.source.path, pixels), self.mpp, self.spec).read_one(middle, middle, out=patch)
        return out

    def _readable(self, row: int) -> bool:
        try:
            self.source.read([row])
        except InputError:
            return False
        return True


def spared_window(spot_diameter_px: float) -> int:
    """Side in image pixels of the square that SpaRED cuts around a spot: the spot's diameter, made even."""
    side = int(spot_diameter_px)
    return side + side % 2


class _Stored(BaseReader):
    """One stored patch as an image."""

    def __init__(self, path: Path, pixels: np.ndarray) -> None:
        self.path, self.mpp, self._pixels = path, None, pixels
        self.levels = (Level(pixels.shape[1], pixels.shape[0], 1.0),)

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is held."""


def _dataset(file: h5py.File) -> h5py.Dataset | None:
    for name, dimensions in (("img", 4), (f"obsm/{SPARED_KEY}", 2)):
        found = file.get(name)
        if isinstance(found, h5py.Dataset) and found.ndim == dimensions and found.dtype == np.uint8:
            return found
    return None


def _side(path: Path, data: h5py.Dataset) -> int:
    values = int(np.prod(data.shape[1:]))
    side = round((values / 3) ** 0.5)
    if side < 1 or 3 * side * side != values or (data.ndim == 4 and data.shape[1:] != (side, side, 3)):
        raise InputError(f"{path}: patches of shape {data.shape[1:]}: give square RGB ones")
    return side


def _barcodes(file: h5py.File, slide: str | None) -> tuple[np.ndarray, list[str]]:
    if "img" in file:
        values = np.asarray(file["barcode"]).reshape(-1)
        return np.arange(len(values)), [_text(value) for value in values]
    obs = file["obs"]
    names = [_text(value) for value in obs[obs.attrs.get("_index", "_index")]]
    rows = np.arange(len(names))
    if slide is not None and "slide_id" in obs:
        ids = np.asarray(read_elem(obs["slide_id"])).astype(str)
        if len(np.unique(ids)) > 1:
            rows = np.flatnonzero(ids == slide)
    return rows, [names[row] for row in rows]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _stated_mpp(data: h5py.Dataset) -> float | None:
    for name in _MPP_ATTRIBUTES:
        value = data.attrs.get(name)
        if value is not None and np.size(value) == 1 and 0 < float(value) < 100:
            return float(value)
    return None
