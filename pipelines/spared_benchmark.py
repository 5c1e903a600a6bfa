r"""Run a declared benchmark over SpaRED's data sets on a dask cluster: ingest, cohorts, encode, complete, cells.

    python pipelines/spared_benchmark.py --config pipelines/slurm.toml --benchmark pipelines/spared_benchmark.toml \
        --store S --data /data/spared --dry-run

The benchmark is declared as for ``spared-fm benchmark run``. A cohort that is not in the store is made of the data set of that
name (or abbreviation) in SpaRED's registry, with its split and its parameters. Slides that the store lacks are looked for as
``DATA/<cohort>/<slide>/`` (counts and image, or Space Ranger's ``outs``) or ``DATA/<cohort>/<slide>.h5ad``. A data set that is
not there, or that something is wrong with, is left out with its reason, and the benchmark is of the others.

Slides are read and cohorts made in this process; encoding, completing and the cells run on the cluster that ``--config``
describes (see encode_cluster.py), whose ``[encode]`` says how to encode. It is started twice: a worker that encodes keeps thread
pools small, one that computes cells lets them have its ``cores``. Killed, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster_config import THREAD_VARIABLES, Config, load
from encode_cluster import CHUNKS_IN_HAND, start

import spared_fm
from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.matrix_cells import Matrix, read_matrix
from spared_fm.targets.completion.registry import METHODS, layer_name
from spared_fm.targets.datasets import Dataset, datasets, read_datasets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOURCES = ("log1p", "lognorm", "c_log1p")
"""Layers that a declared target may be the completion of, in the order they are tried."""


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A cohort of the benchmark: what is there of it, and what is to be done.

    Attributes
    ----------
    name
        As declared.
    slides
        Its slides; none where `reason` says why it is left out.
    ingest
        Slide → where it lies, of those that the store lacks.
    dataset
        What it is made of; None where it is in the store and not in the registry.
    layers
        Of the cohort in the store; None where it is yet to be made.
    reason
        Why it is left out, or None.
    """

    name: str
    slides: tuple[str, ...] = ()
    ingest: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    dataset: Dataset | None = None
    layers: tuple[str, ...] | None = None
    reason: str | None = None


def look(study: Study, matrix: Matrix, data: Path, registry: Mapping[str, Dataset]) -> list[Cohort]:
    """Find what there is of each declared cohort, in the store and below `data`."""
    there = {row["cohort"]: row for row in study.info()["cohorts"]}
    known = {key.lower(): one for one in registry.values() for key in (one.abbreviation, one.name)}
    slides = set(study.slides)
    found = []
    for name in matrix.cohorts:
        one, row = known.get(name.lower()), there.get(name)
        if row is not None and _mode(matrix) == matrix.protocol != row["mode"]:
            reason = f"it is in the store in mode {row['mode']}, not {matrix.protocol}: take another store"
            found.append(Cohort(name, reason=reason))
        elif row is not None:
            found.append(Cohort(name, tuple(row["split"]), dataset=one, layers=tuple(row["layers"])))
        elif one is None:
            found.append(Cohort(name, reason="neither a data set of SpaRED's nor a cohort of the store"))
        else:
            places = {slide: _place(data / name, slide) for slide in one.slides if slide not in slides}
            absent = [slide for slide, place in places.items() if place is None]
            if absent:
                reason = f"{len(absent)} of {len(one.slides)} slides are not in {data / name}: {', '.join(absent[:3])}"
                found.append(Cohort(name, dataset=one, reason=reason + (" …" if len(absent) > 3 else "")))
            else:
                ingest = {slide: place for slide, place in places.items() if place is not None}
                found.append(Cohort(name, one.slides, ingest, one))
    return found


def _place(folder: Path, slide: str) -> Path | None:
    return next((path for path in (folder / slide, folder / f"{slide}.h5ad") if path.exists()), None)


def completions(targets: Sequence[str], layers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Say how the targets that are not among the layers are made of them: target → method and source.

    Raises
    ------
    InputError
        A target that no method makes of these layers.
    """
    possible = {
        layer_name(method, source): (method, source) for source in SOURCES if source in layers for method in METHODS
    }
    wanted = [target for target in targets if target not in layers]
    if lost := [target for target in wanted if target not in possible]:
        raise InputError(f"no layer {lost[0]!r}, nor a completion of that name (layers: {', '.join(sorted(layers))})")
    return {target: possible[target] for target in wanted}


def encoders(matrix: Matrix, config: Config) -> list[str]:
    """Name the encoders that the features are made of, each once; ``tokens/a`` and ``a+b`` are taken apart."""
    parts = [part for encoder in matrix.encoders for part in encoder.split("+")]
    if not config["encode"]["tokens"] and (grids := [part for part in parts if part.startswith("tokens/")]):
        raise InputError(f"{grids[0]} is a token grid: say how many tokens a side in [encode] tokens of --config")
    return list(dict.fromkeys(part.removeprefix("tokens/") for part in parts))


def prepare(study: Study, cohort: Cohort, mode: str) -> Cohort:
    """Ingest the slides that the store lacks, and make the cohort where there is none."""
    if cohort.layers is not None or cohort.dataset is None:
        return cohort
    one = cohort.dataset
    for slide, path in cohort.ingest.items():
        study.ingest(path, slide=slide, patient=one.patient[slide])
    made = study.cohort(cohort.name, slides=list(one.slides), split=one.split, mode=mode, params=one.parameters)
    return dataclasses.replace(cohort, layers=tuple(made["layers"]))


def fill(study: Study, cohort: Cohort, matrix: Matrix, config: Config, client: Any) -> None:
    """Encode the cohort's slides and complete its layers on the cluster; what is done already is not done again."""
    import dask

    gpu = config["cluster"]["gpu"]
    options = {name: value for name, value in config["encode"].items() if value is not None}
    for name in ("store", "slides", "encoders"):
        options.pop(name, None)
    options.setdefault("device", "cuda" if gpu else "cpu")
    with dask.annotate(**({"resources": {"GPU": 1 / CHUNKS_IN_HAND}} if gpu else {})):
        address = client.scheduler.address
        study.encode(encoders(matrix, config), slides=list(cohort.slides), scheduler=address, **options)
    todo = completions(_layers_needed(matrix), cohort.layers or ())
    futures = [
        client.submit(Study.complete, study, cohort.name, method=method, source=source, show=False, pure=False)
        for method, source in todo.values()
    ]
    client.gather(futures)


def _layers_needed(matrix: Matrix) -> list[str]:
    """Targets that are layers of the cohort; HEST's are made of the slides' counts."""
    return [] if _mode(matrix) != matrix.protocol else list(matrix.targets)


def _mode(matrix: Matrix) -> str:
    """Mode of the cohorts that are made: HEST's protocols take any."""
    return matrix.protocol if matrix.protocol in ("strict", "spared") else "strict"


def run(config: Config, benchmark: Path, data: Path, registry: Mapping[str, Dataset]) -> list[dict[str, Any]]:
    """Do all of it; a row per cohort with its status and reason, then one of the benchmark with its cells by status.

    Raises
    ------
    InputError
        No cohort is left, or the benchmark or the cluster can't be had.
    """
    from distributed import Client, KilledWorker

    matrix = read_matrix(benchmark)
    encoders(matrix, config)  # what it has to say comes first
    study = spared_fm.open(Path(config["encode"]["store"]).resolve(), create=True)
    reasons: dict[str, str | None] = {}
    ready: list[Cohort] = []
    for cohort in look(study, matrix, data, registry):
        reasons[cohort.name] = cohort.reason
        if cohort.reason is None:
            try:
                ready.append(prepare(study, cohort, _mode(matrix)))
            except (InputError, OSError) as error:
                reasons[cohort.name] = _one_line(error)
    if ready:
        with start(config) as cluster, Client(cluster.scheduler_address) as client:
            for cohort in ready:
                try:
                    fill(study, cohort, matrix, config, client)
                except (InputError, OSError, KilledWorker) as error:
                    reasons[cohort.name] = _one_line(error)
    kept = [name for name in matrix.cohorts if reasons[name] is None]
    if not kept:
        first = next(iter(reasons))
        raise InputError(f"none of the {len(reasons)} cohorts can be used; {first}: {reasons[first]}")
    rows = [{"cohort": name, "status": "skipped" if why else "ready", "reason": why} for name, why in reasons.items()]
    return [*rows, {"benchmark": matrix.name} | _cells(study, benchmark, kept, config)]


def _cells(study: Study, benchmark: Path, kept: list[str], config: Config) -> dict[str, Any]:
    """Compute the cells of the cohorts that are kept, each with the cores of a worker; how many have which status."""
    config = copy.deepcopy(config)
    config["cluster"]["environment"] |= dict.fromkeys(THREAD_VARIABLES, str(config["cluster"]["cores"]))
    declared = tomllib.loads(benchmark.read_text(encoding="utf-8")) | {"cohorts": kept}
    with tempfile.TemporaryDirectory() as folder, start(config) as cluster:
        reduced = Path(folder) / benchmark.name
        reduced.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in declared.items()), encoding="utf-8")
        rows = study.run_benchmark(reduced, scheduler=cluster.scheduler_address, progress=sys.stderr.isatty())
    cells = {row["cell"]: row["status"] for row in rows}
    return {
        "cells": len(cells),
        **{status: list(cells.values()).count(status) for status in sorted(set(cells.values()))},
    }


def _toml(value: Any) -> str:
    """Write a plain value as TOML has it on one line."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {_toml(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def plan(config: Config, benchmark: Path, data: Path, registry: Mapping[str, Dataset]) -> list[dict[str, Any]]:
    """Say what :func:`run` would do, a row per cohort; nothing is written.

    ``complete`` names the layers to complete of a cohort that is there. Of one that isn't it is None: its layers are not known.
    """
    matrix = read_matrix(benchmark)
    named = encoders(matrix, config)
    store = Path(config["encode"]["store"]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        study = spared_fm.open(store) if store.exists() else spared_fm.open(Path(folder) / "none", create=True)
        found = look(study, matrix, data, registry)
    rows: list[dict[str, Any]] = []
    for one in found:
        if one.reason is not None:
            rows.append({"cohort": one.name, "status": "skipped", "reason": one.reason})
            continue
        row: dict[str, Any] = {"cohort": one.name, "status": "there" if one.layers is not None else "to make"}
        row |= {"slides": len(one.slides), "ingest": list(one.ingest), "encoders": named, "complete": None}
        if one.layers is not None:
            try:
                row["complete"] = list(completions(_layers_needed(matrix), one.layers))
            except InputError as error:
                row |= {"status": "skipped", "reason": _one_line(error)}
        rows.append(row)
    return rows


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code: 0 done, 1 failed with one line on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file of the cluster, see encode_cluster.py")
    parser.add_argument("--benchmark", type=Path, required=True, help="TOML file as for `spared-fm benchmark run`")
    parser.add_argument("--store", required=True, help="the store; made where there is none")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder for each")
    parser.add_argument("--datasets", type=Path, help="another registry, in the form of the package's datasets.toml")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, do nothing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(arguments)
    try:
        config = load(given.config, {"store": given.store, "encoders": ["of the benchmark"]})
        registry = read_datasets(given.datasets)[0] if given.datasets else datasets()
        for row in (plan if given.dry_run else run)(config, given.benchmark, given.data.resolve(), registry):
            print(json.dumps(row))
    except (InputError, ImportError) as error:
        if given.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; what is done is kept, run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
