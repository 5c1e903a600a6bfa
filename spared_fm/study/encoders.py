"""Encoders: the registry as a table, and its golden vectors."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.encoders.offline import configured_file
from spared_fm.encoders.registry import rows
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.encoders.registry import Row


def encoders(
    pattern: str = "*",
    *,
    registry: str | Path | None = None,
    dim: int | None = None,
    ungated: bool = False,
    ready: bool = False,
) -> list[dict[str, Any]]:
    """List the encoders there are.

    Parameters
    ----------
    pattern
        Glob of names.
    registry
        A TOML file with rows of the user's own.
    dim
        Only vectors of this length.
    ungated
        Only those whose weights need no request.
    ready
        Only those that can run here without a network.

    Returns
    -------
    list of dict
        name, title, dim, token_dim, px, mpp, pooling, compute_dtype, parameters, licence, gated, weights (where they are:
        ``built in``, ``config``, ``cache``, ``not here``), lacks (optional packages), hub, reference, note, unverified.

    Raises
    ------
    InputError
        The user's file is wrong, or nothing fits.
    """
    known = rows(Path(registry) if registry else None)
    found = [_table_row(row) for name, row in known.items() if fnmatch.fnmatch(name, pattern)]
    found = [
        row
        for row in found
        if (dim is None or row["dim"] == dim)
        and not (ungated and row["gated"])
        and not (ready and (row["weights"] == NOT_HERE or row["lacks"]))
    ]
    if not found:
        raise InputError(f"none of the {len(known)} encoders fits; `spared-fm encoders` lists them all")
    return found


BUILT_IN, CONFIG, CACHE, NOT_HERE = "built in", "config", "cache", "not here"


def _table_row(row: Row) -> dict[str, Any]:
    names = (
        "name", "title", "dim", "token_dim", "px", "mpp", "pooling", "compute_dtype", "parameters", "licence", "gated",
    )  # fmt: skip
    return {
        **{name: getattr(row, name) for name in names},
        "mpp": list(row.mpp),
        "weights": _weights(row),
        "lacks": [need for need in row.requires if not _installed(need)],
        **{name: getattr(row, name) for name in ("hub", "reference", "note")},
        "unverified": list(row.unverified),
    }


def _weights(row: Row) -> str:
    if row.loader == "builtin":
        return BUILT_IN
    path = configured_file(row.name)
    if path is not None and path.is_file():
        return CONFIG
    from spared_fm.encoders.hub import cached

    return CACHE if cached(row) else NOT_HERE


def _installed(requirement: str) -> bool:
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def verify_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    registry: str | Path | None = None,
    precision: str | None = None,
    device: str = "cpu",
    golden: str | Path | None = None,
    record: bool = False,
) -> dict[str, Any]:
    """Run the golden patches through an encoder and compare with the vectors that are known.

    Parameters
    ----------
    name, weights, registry, precision, device
        As for ``encode``.
    golden
        The user's own file of golden vectors, beside those that ship; by default
        ``~/.config/spared-fm/golden.json``.
    record
        Keep this encoder's vectors in that file.

    Returns
    -------
    dict
        encoder, weights (digest), status (``same``, ``differs``, ``unknown``), error, cosine, tolerance, text, recorded (file).

    Raises
    ------
    InputError
        The encoder can't be built here.
    """
    from spared_fm.encoders import golden as goldens
    from spared_fm.encoders.builder import build

    own = Path(golden).expanduser() if golden else Path.home() / ".config" / "spared-fm" / "golden.json"
    spec = resolve(name, weights, registry=registry, precision=precision)
    encoder = build(spec, device=device)
    known = [*goldens.load(goldens.SHIPPED).get(name, []), *goldens.load(own).get(name, [])]
    found = goldens.compare(encoder, known)
    if record:
        records = goldens.load(own)
        records.setdefault(name, []).append(goldens.record(encoder))
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(records, indent=1))
    return {
        "encoder": name,
        "weights": encoder.weights,
        "status": found.status,
        "error": found.error,
        "cosine": found.cosine,
        "tolerance": found.tolerance,
        "text": found.text,
        "recorded": str(own) if record else None,
    }
