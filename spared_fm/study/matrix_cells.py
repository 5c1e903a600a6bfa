"""Cells of a benchmark that a TOML file declares: which there are, and what each depends on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import spared_fm
from spared_fm.errors import InputError
from spared_fm.store.layout import check_name
from spared_fm.store.recipe import canonical_json, digest
from spared_fm.study.cohort import cohort_record, require_layer
from spared_fm.study.evaluate import BESIDE, current_arrays, find_keys
from spared_fm.study.head_inputs import text_digest
from spared_fm.study.matrix_kept import FORMAT
from spared_fm.study.protocols import HEST, PROTOCOLS, check_target
from spared_fm.tables import check_fields, is_list, is_one_of, is_said, is_whole, read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spared_fm.store.layout import Layout
    from spared_fm.tables import Check

SCORES = {"all": ("all",), "measured": ("measured",), "both": ("all", "measured")}
TEXT_PARAM = "gene_features"
"""Parameter of heads that read descriptions of the genes."""

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


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What a TOML file declares.

    Attributes
    ----------
    name
        Names the folder of results, ``benchmarks/<name>/``.
    cohorts, targets
        Cohorts, layer names (``hest`` for HEST's protocols).
    encoders
        Encoder names or array keys; ``tokens/<name>`` for a token grid; several joined by ``+`` stand side by side.
    heads
        Name and parameters of each head; parameters that are not given are the head's own.
    protocol
        ``strict`` or ``spared``: the mode that every cohort was built in; or ``hest_exact`` or ``hest_corrected``. See
        :func:`spared_fm.study.protocols.folds`.
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
    """One head, fitted once per fold: cohort × encoder × head × target × protocol × seed.

    Attributes
    ----------
    cohort, encoder, head, target, protocol
        Names; the encoder by its array key, or keys joined by ``+``.
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
    protocol: str
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

    A cell's id covers the protocol, the cohort's name and settings (slides, split, panel, mode, parameters), how its layer was
    made, the ids of the embeddings (recipe, image, spots), the head with all its parameters, defaults too, gene descriptions
    where the head reads them, this package's version and ``FORMAT``.

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
        An unknown cohort, layer, encoder, head or parameter, stale embeddings, a cohort of another mode, or a target that the
        protocol doesn't take.
    """
    for layer in matrix.targets:
        check_target(matrix.protocol, layer)
    seeded = [(name, params, *_with_seeds(name, params, matrix.seeds)) for name, params in matrix.heads]
    found: dict[Cell, None] = {}
    for cohort in matrix.cohorts:
        record = cohort_record(layout, cohort)
        made = _targets(record, cohort, matrix)
        text = text_digest(layout, cohort) if any(TEXT_PARAM in whole for _, _, whole, _ in seeded) else None
        for encoder in matrix.encoders:
            keys = find_keys(layout, list(record["split"]), encoder)
            arrays = {slide: current_arrays(layout, slide, keys) for slide in record["split"]}
            embeddings = {slide: [one.attributes["embedding_id"] for one in own] for slide, own in arrays.items()}
            for layer in matrix.targets:
                inputs = {
                    "format": FORMAT,
                    "spared-fm": spared_fm.__version__,
                    "protocol": matrix.protocol,
                    "cohort": [cohort, record["settings_digest"]],
                    "target": {"layer": layer, **made[layer]},
                    "embeddings": embeddings,
                }
                for name, given, params, seeds in seeded:
                    read = {"text": text} if TEXT_PARAM in params else {}
                    for seed in seeds:
                        whole = params if seed is None else params | {"seed": seed}
                        identity = digest(inputs | {"head": name, "params": whole} | read)[:16]
                        cell = Cell(
                            cohort,
                            BESIDE.join(keys),
                            name,
                            canonical_json(given),
                            layer,
                            matrix.protocol,
                            seed,
                            identity,
                        )
                        found[cell] = None
    return list(found)


def _targets(record: Mapping[str, Any], cohort: str, matrix: Matrix) -> dict[str, dict[str, Any]]:
    """Say how each target was made, after checking that the cohort has it."""
    if matrix.protocol in HEST:
        if matrix.score == "measured":
            raise InputError(f"protocol {matrix.protocol} scores all entries: leave score out, or make it all")
        return {layer: {} for layer in matrix.targets}
    if record["mode"] != matrix.protocol:
        raise InputError(
            f"cohort {cohort!r} was built in mode {record['mode']}, not {matrix.protocol}: name another cohort, or change "
            "protocol"
        )
    for layer in (*matrix.targets, *(["mask"] if "measured" in SCORES[matrix.score] else [])):
        require_layer(record, cohort, layer)
    return {
        layer: {k: v for k, v in record["layers"][layer].items() if k not in ("scores", "spread")}
        for layer in matrix.targets
    }


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
