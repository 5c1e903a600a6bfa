"""Where the patches of a feature file lie: coordinates as other tools write them, in the file or beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from spared_fm.errors import InputError
from spared_fm.slides.slide import READ_ERRORS, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Places",
    "find_places",
    "number",
    "pixel_places",
    "plain",
    "read_json",
    "read_places",
    "stamp_places",
    "text",
]

_BESIDE = ("", "tiles", "coordinates", "h5_files", "patches")
_ENDINGS = (".coordinates.npz", ".npz", ".npy", ".csv", ".h5", "_patches.h5")


@dataclasses.dataclass
class Places:
    """Where the patches of a file lie.

    Attributes
    ----------
    corners
        float64 (n, 2): x and y of each patch's top-left corner, in `unit` from the image's corner; None where the file has
        barcodes only.
    unit
        ``"px"``: pixels of the image's level 0; ``"um"``: micrometres.
    side
        Side of a patch in `unit`, None where nothing says.
    patch_px, patch_um
        The patch as it was asked for: pixels given to the encoder, and micrometres. Equal in all files of a run, which `side`
        need not be. 0 where nothing says.
    stated
        What the file says about its making, as plain values.
    """

    corners: np.ndarray | None = None
    unit: str = "px"
    side: float | None = None
    patch_px: int = 0
    patch_um: float = 0.0
    stated: dict[str, Any] = dataclasses.field(default_factory=dict)


def pixel_places(coords: h5py.Dataset | None) -> Places:
    """Places as TRIDENT and CLAM write them: the patch's size is in the attributes, if anywhere."""
    if coords is None:
        return Places()
    stated = plain(coords.attrs)
    px, side = number(stated, "patch_size"), number(stated, "patch_size_level0")
    from_mag, to_mag = number(stated, "level0_magnification"), number(stated, "target_magnification")
    if side is None and px and from_mag and to_mag:
        side = px * from_mag / to_mag
    downsample = np.asarray(coords.attrs.get("downsample", 0.0), np.float64)
    if side is None and px and downsample.all():
        side = px * float(downsample.mean())
    values = np.asarray(coords, np.float64)
    corners = values[0] if values.ndim == 3 and len(values) == 1 else values
    # a magnification of 10 is 1 µm per pixel, in TRIDENT as everywhere
    um = px * 10.0 / to_mag if px and to_mag else 0.0
    return Places(corners, "px", side, int(px or 0), um, stated)


def stamp_places(path: Path, file: h5py.File) -> Places:
    """Places as STAMP writes them, in micrometres; refuses a file whose unit is not known."""
    stated = plain(file.attrs)
    if "coords" not in file:
        return Places(stated=stated)
    side = number(stated, "tile_size_um")
    if side is None and stated.get("unit") == "um":
        side = number(stated, "tile_size")
    if side is None:
        raise InputError(
            f"{path}: doesn't say tile_size_um, so its coordinates have no known unit: extract it again with STAMP 2"
        )
    px = int(number(stated, "tile_size_px") or 0)
    return Places(np.asarray(file["coords"], np.float64), "um", side, px, side, stated)


def find_places(path: Path, given: str | Path | None) -> Path:
    """Find the file with the places of the features in `path`: `given`, in the folder `given`, or beside `path`.

    Raises
    ------
    InputError
        There is none.
    """
    folders = [path.parent / name if not name else path.parent.parent / name for name in _BESIDE]
    if given is not None:
        if Path(given).is_file():
            return Path(given)
        folders = [Path(given)]
    found = (folder / f"{path.stem}{ending}" for folder in folders for ending in _ENDINGS)
    place = next((file for file in found if file != path and file.is_file()), None)
    if place is None:
        where = "in it or beside it" if given is None else f"in {given}"
        raise InputError(f"{path}: no coordinates {where}: name their .npz, .npy, .csv or .h5 with --coordinates")
    return place


def read_places(place: Path, path: Path) -> Places:
    """Read a file of places.

    Parameters
    ----------
    place
        .npz or .npy with ``x`` and ``y``, .csv with these columns, or .h5 with ``coords``.
    path
        The file of features, whose ``.meta.json`` may say the size of a patch.

    Raises
    ------
    InputError
        It can't be read, or has no places.
    """
    try:
        if place.suffix in (".h5", ".hdf5"):
            with h5py.File(place, "r") as file:
                if "coords" not in file:
                    raise InputError(f"{place}: has no coords: name another file with --coordinates")
                return pixel_places(file["coords"])
        table = _table(place)
        corners = np.stack([np.asarray(table[axis], np.float64) for axis in ("x", "y")], axis=1)
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{place}: no readable x and y ({first_line(error)}): write it again") from error
    stated: dict[str, Any] = {}
    for meta in (place.with_suffix(".meta.json"), path.with_name(f"{path.stem}.meta.json")):
        if meta.is_file():
            content = read_json(meta)
            stated = plain(content.get("tiling") or content) | stated
    side = number(stated, "tile_size_lv0")
    if side is None and "tile_size_lv0" in table:
        sizes = np.unique(np.asarray(table["tile_size_lv0"], np.float64))
        side = float(sizes[0]) if len(sizes) == 1 else None
    px, mpp = number(stated, "requested_tile_size_px"), number(stated, "requested_spacing_um")
    return Places(corners, "px", side, int(px or 0), px * mpp if px and mpp else 0.0, stated)


def _table(place: Path) -> Mapping[str, np.ndarray]:
    if place.suffix == ".csv":
        import pandas as pd

        frame = pd.read_csv(place)
        return {str(name).strip(): frame[name].to_numpy() for name in frame.columns}
    data = np.load(place, allow_pickle=False)
    if isinstance(data, np.ndarray):
        return {name: data[name] for name in data.dtype.names or ()}
    with data:
        return {name: data[name] for name in data}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is taken for an empty one."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not readable JSON ({first_line(error)}): write it again") from error
    return content if isinstance(content, dict) else {}


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Single strings and finite numbers of `attributes`, as plain Python values."""
    found = {}
    for name, value in attributes.items():
        item = value.item() if isinstance(value, np.generic) else value
        item = text(item) if isinstance(item, bytes) else item
        if isinstance(item, str | bool | int) or (isinstance(item, float) and math.isfinite(item)):
            found[str(name)] = item
    return found


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """Give attribute `name` if it is a positive number."""
    try:
        value = float(attributes.get(name, 0))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def text(value: Any) -> str:
    """Decode what HDF5 gives for a string."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
