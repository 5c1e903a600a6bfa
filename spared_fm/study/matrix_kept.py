"""Where the cells of a declared benchmark are kept: a receipt of each, and beside it what was predicted."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load as tensors_load
from safetensors.numpy import save as tensors_save

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from spared_fm.store.layout import Layout

FORMAT = 2
"""Of a kept cell. Raise it when the way a cell is computed changes: cells kept before are then computed again."""
FOLDER = "benchmarks"
DECLARED = "matrix.json"
"""Makes a folder a benchmark: written first by a run, last by a copy."""
RECEIPT, PREDICTIONS = ".json", ".safetensors"
DIGEST = "predictions_sha256"
NUMBERS = ("pcc_gene", "pcc_patch", "mse", "mae", "r2_gene", "r2_patch")
COUNTED = ("n_slides", "n_spots", "n_entries", "n_genes_scored", "n_spots_scored")
"""Columns of a receipt's rows that hold scores, and counts of what was scored."""
FAILED = "failed"
"""Status of a cell that has a reason and no result, and is tried again."""
ONLY = "-"
"""Stands for the name of a fold where there is one only."""


def folder(name: str) -> str:
    """Key of a benchmark's folder."""
    return f"{FOLDER}/{name}"


def names(layout: Layout) -> list[str]:
    """Names of the benchmarks in the store, sorted."""
    return [name for name in layout.files.list(FOLDER) if layout.files.exists(f"{FOLDER}/{name}/{DECLARED}")]


def declared(layout: Layout, name: str) -> dict[str, Any]:
    """Read what a benchmark was last declared to be: format, score, cells.

    Raises
    ------
    InputError
        No such benchmark, or it was declared with an older version.
    """
    try:
        found = json.loads(layout.files.read(f"{folder(name)}/{DECLARED}"))
    except FileNotFoundError:
        known = ", ".join(names(layout)) or "none"
        raise InputError(f"{layout.root}: no benchmark {name!r} (benchmarks: {known}); run one first") from None
    except ValueError as error:
        raise InputError(
            f"{layout.root / folder(name)}/{DECLARED} is damaged ({error}); run the benchmark again"
        ) from error
    if found["format"] != FORMAT:
        raise InputError(f"benchmark {name!r} was run with another version; run it again")
    return found


def declare(layout: Layout, name: str, what: Mapping[str, Any]) -> None:
    """Write what a benchmark is declared to be."""
    layout.files.replace(f"{folder(name)}/{DECLARED}", json.dumps({"format": FORMAT, **what}, indent=1).encode())


def keep(
    layout: Layout,
    name: str,
    cell: str,
    record: Mapping[str, Any],
    predicted: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> None:
    """Keep a cell: first what was predicted, then the receipt, without which the predictions are nothing.

    Parameters
    ----------
    layout
        The store.
    name, cell
        Benchmark and cell id.
    record
        The receipt, JSON values.
    predicted
        As :func:`predictions` gives it; None for a cell that has none.
    """
    full = {"format": FORMAT, **record}
    if predicted is not None:
        data = tensors_save({f"{fold or ONLY}/{unit}": values for (fold, unit), values in predicted.items()})
        full[DIGEST] = hashlib.sha256(data).hexdigest()
        layout.files.replace(f"{folder(name)}/{cell}{PREDICTIONS}", data)
    layout.files.replace(f"{folder(name)}/{cell}{RECEIPT}", json.dumps(full, indent=1, allow_nan=False).encode())


def receipt(layout: Layout, name: str, cell: str) -> dict[str, Any] | None:
    """Read a cell's receipt; None where there is none, or one of another format.

    Raises
    ------
    InputError
        It is damaged.
    """
    key = f"{folder(name)}/{cell}{RECEIPT}"
    try:
        found: dict[str, Any] = json.loads(layout.files.read(key))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{layout.root / key} is damaged ({error}); remove it, and run the benchmark again") from error
    return found if found["format"] == FORMAT else None


def cells(layout: Layout, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the id and the receipt of every cell that is kept, also of those that are no longer declared."""
    for file in layout.files.list(folder(name)):
        if file.endswith(RECEIPT) and file != DECLARED and (found := receipt(layout, name, file[: -len(RECEIPT)])):
            yield file[: -len(RECEIPT)], found


def files(layout: Layout, name: str, cell: str) -> list[str]:
    """Keys of a cell's files, the receipt first: without it the other is nothing."""
    keys = [f"{folder(name)}/{cell}{ending}" for ending in (RECEIPT, PREDICTIONS)]
    return [key for key in keys if layout.files.exists(key)]


def predictions(layout: Layout, name: str, cell: str) -> dict[tuple[str, str], np.ndarray]:
    """Read what a cell's heads predicted of the spots they were not fitted on.

    Parameters
    ----------
    layout
        The store.
    name, cell
        Benchmark and cell id (column ``cell`` of :func:`spared_fm.study.matrix.show`).

    Returns
    -------
    dict
        (fold, unit) → float32 (spots, genes): spots of the unit in cohort order, NaN rows where a patch is absent, genes as
        ``folds`` of the receipt names them. The fold is ``""`` where there is one only.

    Raises
    ------
    InputError
        The cell has no predictions, or their file is gone or damaged.
    """
    found = receipt(layout, name, cell)
    if found is None or DIGEST not in found:
        raise InputError(
            f"{layout.root}: cell {cell} of benchmark {name!r} has no predictions; `spared-fm benchmark show {name}` says why"
        )
    try:
        tensors = tensors_load(_checked(layout, name, cell, found))
    except SafetensorError as error:
        raise InputError(
            f"cell {cell} of benchmark {name!r}: predictions can't be read ({error}); {_mend(cell)}"
        ) from error
    parted = {tuple(tensor.split("/", 1)): values for tensor, values in tensors.items()}
    return {("" if fold == ONLY else fold, unit): values for (fold, unit), values in parted.items()}


def copy(layout: Layout, other: Layout, name: str, cell: str) -> bool:
    """Copy a cell that has a result from another store, if this one has none.

    Parameters
    ----------
    layout, other
        The store that gets it, and the one that is read.
    name, cell
        Benchmark and cell id.

    Returns
    -------
    bool
        Whether there was something to copy.

    Raises
    ------
    InputError
        The other's receipt or predictions are damaged.
    """
    theirs, ours = receipt(other, name, cell), receipt(layout, name, cell)
    if theirs is None or theirs["status"] == FAILED or (ours is not None and ours["status"] != FAILED):
        return False
    if DIGEST in theirs:
        layout.files.replace(f"{folder(name)}/{cell}{PREDICTIONS}", _checked(other, name, cell, theirs))
    layout.files.replace(f"{folder(name)}/{cell}{RECEIPT}", other.files.read(f"{folder(name)}/{cell}{RECEIPT}"))
    return True


def _checked(layout: Layout, name: str, cell: str, found: Mapping[str, Any]) -> bytes:
    """Read a cell's file of predictions, if it is the one that the receipt vouches for."""
    key = f"{folder(name)}/{cell}{PREDICTIONS}"
    try:
        data = layout.files.read(key)
    except FileNotFoundError:
        raise InputError(f"{layout.root / key} is gone; {_mend(cell)}") from None
    if hashlib.sha256(data).hexdigest() != found[DIGEST]:
        raise InputError(f"{layout.root / key} does not match its receipt; {_mend(cell)}")
    return data


def _mend(cell: str) -> str:
    return f"remove {cell}{RECEIPT} beside it, and run the benchmark again"
