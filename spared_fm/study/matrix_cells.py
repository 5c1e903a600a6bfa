"""Cells of a benchmark that a TOML file declares: which there are, what each depends on, and how one is computed."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

import spared_fm
from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout, check_name
from spared_fm.store.recipe import canonical_json, digest
from spared_fm.study.cohort import cohort_record, target
from spared_fm.study.encode import find_key
from spared_fm.study.evaluate import join
from spared_fm.tables import check_fields, is_list, is_one_of, is_said, is_whole, read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spared_fm.tables import Check

FORMAT = 1
"""Of a kept cell. Raise it when the way a cell is computed changes: cells kept before are then computed again."""
PROTOCOLS = ("strict", "spared")
SCORES = {"all": ("all",), "measured": ("measured",), "both": ("all", "measured")}
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "pytorch-lightning", "lightgbm")
"""Their versions are kept with a cell, but a newer one doesn't make it another cell."""

_NAMES: Check = ("a list of names", is_list(is_said, empty=False))
_FIELDS: dict[str, Check] = {
    "name": ("a name", is_said),
    "cohorts": _NAMES,
    "encoders": _NAMES,
    "heads": (
        "a list of names, or of tables with name and params",
        is_list(lambda head: is_said(head) or isinstance(head, dict), empty=False),
    ),
    "targets": _NAMES,
    "protocol": (" or ".join(PROTOCOLS), is_one_of(*PROTOCOLS)),
    "score": (" or ".join(SCORES), is_one_of(*SCORES)),
    "seeds": ("a list of whole numbers", is_list(is_whole(0), empty=False)),
}
_HEAD: dict[str, Check] = {
    "name": ("a head's name", is_said),
    "params": ("a table of the head's parameters", lambda params: isinstance(params, dict)),
}
# A network's random numbers come from generators of the whole process.
_ONE_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What a TOML file declares.

    Attributes
    ----------
    name
        Names the folder of results, ``benchmarks/<name>/``.
    cohorts, encoders, targets
        Cohorts, encoder names or array keys, layer names.
    heads
        Name and parameters of each head; parameters that are not given are the head's own.
    protocol
        ``strict`` or ``spared``: the mode that every cohort was built in.
    score
        Rows to show: of ``all`` entries, of ``measured`` ones, or ``both``. It is no part of a cell: both are kept.
    seeds
        A head that has the parameter ``seed`` gets one cell for each; other heads get one cell.
    """

    name: str
    cohorts: tuple[str, ...]
    encoders: tuple[str, ...]
    heads: tuple[tuple[str, dict[str, Any]], ...]
    targets: tuple[str, ...]
    protocol: str
    score: str
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fit: cohort × encoder × head × target × seed.

    Attributes
    ----------
    cohort, encoder, head, target
        Names; the encoder by its array key.
    params
        The head's parameters that were given, as JSON text.
    seed
        None where the head has none.
    id
        Digest of all that decides the result, 16 hex digits, see :func:`cells`.
    """

    cohort: str
    encoder: str
    head: str
    params: str
    target: str
    seed: int | None
    id: str


def read_matrix(path: Path) -> Matrix:
    """Read the declaration of a benchmark.

    Raises
    ------
    InputError
        Not such a file; the message names the field and the mend. Names are looked up by :func:`cells`.
    """
    table = read_toml(path, "`spared-fm benchmark run --help`")
    found = check_fields(str(path), table, _FIELDS, {"score": "all", "seeds": [0]})
    heads = []
    for number, head in enumerate(found["heads"], 1):
        one = check_fields(f"{path}: head {number}", {"name": head} if is_said(head) else head, _HEAD, {"params": {}})
        if "seed" in one["params"]:
            raise InputError(f"{path}: head {number} has seed among its params; give it in seeds")
        heads.append((one["name"], one["params"]))
    check_name(found["name"], "benchmark")
    return Matrix(**(found | {"heads": tuple(heads)}))


def cells(layout: Layout, matrix: Matrix) -> list[Cell]:
    """Look up every name of a declaration, and give its cells.

    A cell's id covers the cohort's settings (slides, split, panel, mode, parameters), how its layer was made, the ids of the
    embeddings (recipe, image, spots), the head with all its parameters, defaults too, this package's version and
    ``FORMAT``.

    Parameters
    ----------
    layout
        The store.
    matrix
        From :func:`read_matrix`.

    Returns
    -------
    list of Cell
        Cohort by cohort, each once.

    Raises
    ------
    InputError
        An unknown cohort, layer, encoder, head or parameter, stale embeddings, or a cohort of another mode.
    """
    seeded = [(name, params, *_with_seeds(name, params, matrix.seeds)) for name, params in matrix.heads]
    found: dict[Cell, None] = {}
    for cohort in matrix.cohorts:
        record = cohort_record(layout, cohort)
        if record["mode"] != matrix.protocol:
            raise InputError(
                f"cohort {cohort!r} was built in mode {record['mode']}, not {matrix.protocol}: name another cohort, or change "
                "protocol"
            )
        needed = [*matrix.targets, *(["mask"] if "measured" in SCORES[matrix.score] else [])]
        if lost := [layer for layer in needed if layer not in record["layers"]]:
            raise InputError(
                f"cohort {cohort!r} has no layer {lost[0]!r} (layers: {', '.join(sorted(record['layers']))})"
            )
        for encoder in matrix.encoders:
            key = find_key(layout, list(record["split"]), encoder)
            embeddings = {}
            for slide in record["split"]:
                array = EmbeddingArray(layout, slide, key)
                array.check_current()
                embeddings[slide] = array.attributes["embedding_id"]
            for layer in matrix.targets:
                made = {k: v for k, v in record["layers"][layer].items() if k not in ("scores", "spread")}
                inputs = {
                    "format": FORMAT,
                    "spared-fm": spared_fm.__version__,
                    "cohort": record["settings_digest"],
                    "target": {"layer": layer, **made},
                    "embeddings": embeddings,
                }
                for name, given, params, seeds in seeded:
                    for seed in seeds:
                        whole = params if seed is None else params | {"seed": seed}
                        identity = digest(inputs | {"head": name, "params": whole})[:16]
                        found[Cell(cohort, key, name, canonical_json(given), layer, seed, identity)] = None
    return list(found)


def compute(root: str, cell: Cell, key: str) -> str | None:
    """Compute one cell and keep its result; what goes wrong is kept as its reason.

    Parameters
    ----------
    root
        The store.
    cell
        What to compute.
    key
        Where in the store to keep it.

    Returns
    -------
    str or None
        The reason where there is no result.
    """
    layout = Layout.open(root)
    started = time.perf_counter()
    kept: dict[str, Any] = {"error": None, "rows": []}
    try:
        with _ONE_AT_A_TIME:
            kept |= _scored(layout, cell)
    except Exception as error:  # whatever it is, it is this cell's: the others go on
        kept["error"] = reason(error)
    kept["seconds"] = round(time.perf_counter() - started, 3)
    keep(layout, cell, key, kept)
    return kept["error"]


def keep(layout: Layout, cell: Cell, key: str, result: Mapping[str, Any]) -> None:
    """Write a cell's result, whole or not at all."""
    versions = {name: version(name) for name in LIBRARIES}
    record = {"format": FORMAT, "cell": dataclasses.asdict(cell), "versions": versions, **result}
    layout.files.replace(key, json.dumps(record, indent=1, allow_nan=False).encode())


def reason(error: BaseException) -> str:
    """Say in one line what went wrong; what is no :class:`InputError` is named by its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _with_seeds(
    name: str, params: Mapping[str, Any], seeds: tuple[int, ...]
) -> tuple[dict[str, Any], tuple[int | None, ...]]:
    """Give all parameters of a head, and the seeds it is fitted with."""
    from spared_fm.heads.registry import make

    whole = make(name, **params).get_params(deep=False)
    try:
        canonical_json(whole)
    except (TypeError, ValueError) as error:
        raise InputError(f"head {name!r}: a parameter is no plain finite value ({error})") from error
    return whole, seeds if "seed" in whole else (None,)


def _scored(layout: Layout, cell: Cell) -> dict[str, Any]:
    """Fit a cell's head on the training spots and score the others."""
    from spared_fm.benchmark.metrics import score_slides
    from spared_fm.benchmark.runner import evaluate
    from spared_fm.heads.registry import make

    joined = join(layout, cell.cohort, cell.encoder)
    layers = {"truth": target(layout, cell.cohort, cell.target)}
    if "mask" in cohort_record(layout, cell.cohort)["layers"]:
        layers["mask"] = target(layout, cell.cohort, "mask").astype(bool)
    parts = {what: {unit: values[rows] for unit, rows in joined.rows.items()} for what, values in layers.items()}
    seed = {} if cell.seed is None else {"seed": cell.seed}
    found = evaluate(
        make(cell.head, **json.loads(cell.params), **seed),
        encoder=cell.encoder,
        target=cell.target,
        X=joined.features,
        Y=parts["truth"],
        mask=parts.get("mask"),
        split=joined.split,
        patients=joined.patients,
        coords=joined.coords,
    )
    present = {unit: np.isfinite(values).all(axis=1) for unit, values in found.predictions.items()}
    rows = []
    for split in ("val", "test"):
        units = [unit for unit, seen in present.items() if joined.split[unit] == split and seen.any()]
        arrays = {what: {unit: of[unit][present[unit]] for unit in units} for what, of in parts.items()}
        predicted = {unit: found.predictions[unit][present[unit]] for unit in units}
        for which in ("all", "measured") if units and "mask" in parts else ("all",) if units else ():
            for row in score_slides(arrays["truth"], predicted, mask=arrays.get("mask"), which=which):
                slide = row["slide"] and row["slide"].split("/")[0]  # a unit: its part stands beside it
                rows.append(
                    {"label": found.head.label, "score": which, "split": split} | _plain(row) | {"slide": slide}
                )
    return {"rows": rows, "absent": found.absent}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row as JSON has it: None for a score there is none of."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
