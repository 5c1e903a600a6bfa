"""Bulk ingest: a table of slides."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from spared_fm.errors import InputError
from spared_fm.study.ingest import ingest
from spared_fm.study.progress import track

if TYPE_CHECKING:
    from spared_fm.store.layout import Layout

COLUMNS = ("path", "slide", "patient", "split", "mpp", "image")


def ingest_table(layout: Layout, table: str | Path, *, progress: bool = False) -> list[dict[str, Any]]:
    """Ingest every slide of a CSV table; a row that fails is reported and the others go on.

    Parameters
    ----------
    layout
        The store.
    table
        CSV with the column ``path`` and, as wanted, ``slide``, ``patient``, ``split``, ``mpp``, ``image``. Relative paths
        are relative to the table's folder. Without ``slide``, the id is the path below that folder (below the paths' common
        folder where they lie elsewhere) with ``/`` written ``__``, without ``outs`` and the file's suffix: ``A/1.svs`` and
        ``B/1.svs`` become ``A__1`` and ``B__1``.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        The rows of :func:`spared_fm.study.ingest.ingest` in the table's order; for a row that failed: slide, path, status
        ``failed`` and ``error``. All rows have ``path`` and ``error`` (None where it went well).

    Raises
    ------
    InputError
        The table can't be read or has other columns.
    """
    table = Path(table)
    frame = _read(table)
    paths = [table.parent / path for path in frame["path"]]
    root = _root(table, paths)
    jobs = list(zip(frame.to_dict("records"), paths, strict=True))
    rows: list[dict[str, Any]] = []
    for given, path in track(jobs, "ingest", len(jobs), "rows", show=progress):
        slide = given.get("slide") or None
        try:
            if slide is None and not _holds_several(path):
                slide = slide_id(path, root)
            image = given.get("image")
            found = ingest(
                layout,
                path,
                slide=slide,
                patient=given.get("patient"),
                split=given.get("split"),
                mpp=_number(given.get("mpp"), path),
                image=table.parent / image if image else None,
            )
        except (InputError, OSError) as error:
            text = " ".join(str(error).split())
            rows.append({"slide": slide, "status": "failed", "path": str(path), "error": text, "warnings": []})
            continue
        rows += [{**row, "path": str(path), "error": None} for row in found]
    return rows


def slide_id(path: Path, root: Path) -> str:
    """Id of the slide at ``path``: its path below ``root`` with ``/`` → ``__``.

    >>> slide_id(Path("/d/A/1.svs"), Path("/d")), slide_id(Path("/d/A/s 1/outs"), Path("/d"))
    ('A__1', 'A__s_1')
    """
    path, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    parts = list((path.relative_to(root) if path.is_relative_to(root) else Path(path.name)).parts)
    if not parts:
        parts = [path.name]
    if parts[-1] == "outs":
        parts = parts[:-1] or [path.parent.name]
    elif not path.is_dir():
        parts[-1] = Path(parts[-1]).stem
    return "__".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts).lstrip("._-")


def _read(table: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(table, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise InputError(f"{table}: no such table; it is a CSV with the columns {', '.join(COLUMNS)}") from None
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{table}: not a readable CSV ({' '.join(str(error).split())})") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    unknown = [name for name in frame.columns if name not in COLUMNS]
    if "path" not in frame.columns or unknown:
        what = f"an unknown column {unknown[0]!r}" if unknown else "no column 'path'"
        raise InputError(f"{table}: has {what}; the columns are {', '.join(COLUMNS)}")
    if frame.empty or (frame["path"] == "").any():
        raise InputError(f"{table}: {'has no rows' if frame.empty else 'a row has no path'}; each row names one slide")
    return frame.map(lambda text: text.strip() or None)


def _root(table: Path, paths: list[Path]) -> Path:
    """Folder that ids are relative to: the table's, else the deepest one above all paths."""
    folder = Path(os.path.abspath(table.parent))
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if all(path.is_relative_to(folder) for path in absolute):
        return folder
    try:
        return Path(os.path.commonpath([path.parent for path in absolute]))
    except ValueError:  # different drives
        return folder


def _holds_several(path: Path) -> bool:
    """Whether an .h5ad holds several slides, which keep their own ids."""
    import h5py

    file = path / "counts.h5ad" if path.is_dir() else path
    if file.suffix != ".h5ad" or not file.is_file():
        return False
    from anndata.io import read_elem

    try:
        with h5py.File(file, "r") as opened:
            column = opened["obs"].get("slide_id") if isinstance(opened.get("obs"), h5py.Group) else None
            return column is not None and pd.Series(read_elem(column)).nunique() > 1
    except (OSError, KeyError, ValueError, RuntimeError):
        return False  # ingest says what is wrong with it


def _number(text: str | None, path: Path) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{path}: mpp {text!r} is not a number of micrometres per pixel") from None
