"""What a cluster's TOML file may hold, and how it is read and checked."""

from __future__ import annotations

import dataclasses
import tomllib
from typing import TYPE_CHECKING, Any, cast

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CORES_VARIABLE = (
    "SPARED_FM_CORES"  # a worker fills these; a job's or a pod's share of a machine can't always be seen from inside
)
Config = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key of the TOML file may hold: a wording for the error line and a test."""

    what: str
    fits: Callable[[Any], bool]
    default: Any = None
    required: bool = False


def _parses(function: str) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        import dask.utils

        try:
            return isinstance(value, str) and getattr(dask.utils, function)(value) > 0
        except (ValueError, KeyError):
            return False

    return fits


def _is(kind: type, least: int | None = None) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind and (least is None or cast(int, value) >= least)


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _names(value: Any) -> bool:
    return isinstance(value, str) or (bool(value) and _list_of(str)(value))


def _is_walltime(value: Any) -> bool:
    try:
        return isinstance(value, str) and _seconds_of_walltime(value) > 0
    except ValueError:
        return False


def _are_volumes(value: Any) -> bool:
    return _list_of(dict)(value) and all(
        {"claim", "path"} <= set(volume) <= {"claim", "path", "read_only"} and str(volume["path"]).startswith("/")
        for volume in value
    )


_text, _flag, _count = ("text", _is(str)), ("true or false", _is(bool)), ("a whole number ≥ 1", _is(int, 1))
_duration = ('a duration such as "90m"', _parses("parse_timedelta"))
_number = ("a number > 0", lambda value: type(value) in (int, float) and value > 0)
_texts = ("a list of texts", _list_of(str))

SCHEMA: dict[str, dict[str, Key]] = {
    "cluster": {
        "kind": Key("slurm, kubernetes or local", ("slurm", "kubernetes", "local").__contains__, required=True),
        "min_workers": Key(*_count, 1),
        "max_workers": Key(*_count, required=True),
        "cores": Key(*_count, required=True),
        "memory": Key('a size per worker such as "16GB"', _parses("parse_bytes"), required=True),
        "gpu": Key(*_flag, False),
        "lifetime": Key(*_duration),
        "lifetime_stagger": Key(*_duration, "5m"),
        "allowed_failures": Key(*_count, 20),
        "first_worker": Key(*_duration, "24h"),
        "host": Key(*_text),
        "interface": Key(*_text),
        "tls": Key(*_flag),
        "environment": Key(
            "a table of texts", lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()), {}
        ),
    },
    "slurm": {
        "partition": Key(*_text),
        "account": Key(*_text),
        "walltime": Key('"HH:MM:SS" or "D-HH:MM:SS"', _is_walltime, "04:00:00"),
        "gres": Key(*_text, "gpu:1"),
        "directives": Key(*_texts, []),
        "prologue": Key(*_texts, []),
        "python": Key(*_text),
        "log_directory": Key(*_text, "slurm-logs"),
        "scratch": Key(*_text),
        "key_directory": Key(*_text),
    },
    "kubernetes": {
        "image": Key(*_text, required=True),
        "namespace": Key(*_text, "default"),
        "name": Key(*_text, "spared-fm"),
        "volumes": Key('a list of {claim, path = "/…", read_only}', _are_volumes, []),
        "scheduler_cores": Key(*_count, 1),
        "scheduler_memory": Key('a size such as "4GB"', _parses("parse_bytes"), "4GB"),
        "node_selector": Key("a table", _is(dict), {}),
    },
    "encode": {
        "store": Key(*_text, required=True),
        "encoders": Key("an encoder name or a list of them", _names, required=True),
        "slides": Key("a glob or a list of slide ids", _names),
        "weights": Key(*_text),
        "seed": Key("a whole number ≥ 0", _is(int, 0)),
        "key": Key(*_text),
        "registry": Key(*_text),
        "views": Key(*_text),
        "tokens": Key(*_count),
        "precision": Key(*_text),
        "patch_um": Key(*_number),
        "patch_px": Key(*_count),
        "device": Key(*_text),
        "chunk_rows": Key(*_count),
        "batch_size": Key(*_count),
        "threads": Key(*_count),
        "store_dtype": Key("float16 or float32", ("float16", "float32").__contains__),
    },
}


def load(path: Path, given: dict[str, Any] | None = None, *, only_cluster: bool = False) -> Config:
    """Read and check a config.

    Parameters
    ----------
    path
        TOML file; see ``pipelines/*.toml``.
    given
        Keys of ``[encode]`` from the command line; they win over the file.
    only_cluster
        The keys that ``[encode]`` needs may be absent.

    Returns
    -------
    dict
        Table → key → value, defaults filled in; keys that were left out and have no default are None.

    Raises
    ------
    InputError
        Names the file and the key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give --config a file like pipelines/local.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    for name, table in raw.items():
        if name not in SCHEMA or not isinstance(table, dict):
            raise InputError(f"{path}: {name} is not one of the tables {', '.join(f'[{known}]' for known in SCHEMA)}")
    raw["encode"] = {**raw.get("encode", {}), **(given or {})}
    kind = raw.get("cluster", {}).get("kind")
    tables = ["cluster", "encode", *([kind] if kind in ("slurm", "kubernetes") else [])]
    for name, table in raw.items():
        for key, value in table.items():
            if key not in SCHEMA[name]:
                raise InputError(f"{path}: [{name}] has no key {key!r}; it has {', '.join(SCHEMA[name])}")
            if not SCHEMA[name][key].fits(value):
                raise InputError(f"{path}: [{name}] {key} = {value!r} is not {SCHEMA[name][key].what}")
    for name in tables:
        for key, known in SCHEMA[name].items():
            if known.required and key not in raw.get(name, {}) and not (only_cluster and name == "encode"):
                raise InputError(f"{path}: [{name}] needs {key} ({known.what})")
    config = {
        name: {key: raw.get(name, {}).get(key, known.default) for key, known in SCHEMA[name].items()} for name in tables
    }
    _check_together(path, config)
    return config


def _check_together(path: Path, config: Config) -> None:
    from dask.utils import parse_timedelta

    cluster = config["cluster"]
    if cluster["min_workers"] > cluster["max_workers"]:
        raise InputError(f"{path}: [cluster] min_workers is more than max_workers")
    if cluster["host"] and cluster["interface"]:
        raise InputError(f"{path}: [cluster] takes host or interface, not both")
    if cluster["kind"] == "local":
        if cluster["gpu"] and cluster["max_workers"] > 1:
            raise InputError(
                f"{path}: [cluster] gpu on a local cluster goes with max_workers = 1: workers would share one"
            )
        if not cluster["interface"]:
            cluster["host"] = cluster["host"] or "127.0.0.1"
    if cluster["kind"] == "slurm":
        if not cluster["host"] and not cluster["interface"]:
            raise InputError(
                f'{path}: [cluster] needs host or interface: where the scheduler listens, such as interface = "ib0"'
            )
        if cluster["lifetime"]:
            longest = sum(parse_timedelta(cluster[key]) or 0 for key in ("lifetime", "lifetime_stagger"))
            if longest >= _seconds_of_walltime(config["slurm"]["walltime"]):
                raise InputError(
                    f"{path}: [cluster] lifetime + lifetime_stagger must be under [slurm] walltime, or jobs are killed first"
                )
    if cluster["kind"] == "kubernetes" and (cluster["tls"] or cluster["host"] or cluster["interface"]):
        raise InputError(f"{path}: [cluster] tls, host and interface go with slurm and local; use a NetworkPolicy here")
    cluster["tls"] = cluster["kind"] == "slurm" if cluster["tls"] is None else cluster["tls"]
    cluster["environment"] = {
        **dict.fromkeys(THREAD_VARIABLES, str(config["encode"]["threads"] or 1)),
        CORES_VARIABLE: str(cluster["cores"]),
        **cluster["environment"],
    }


def _seconds_of_walltime(text: str) -> int:
    days, _, rest = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in rest.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
