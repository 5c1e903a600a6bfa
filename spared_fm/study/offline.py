"""Offline: proof that no network socket is opened, at import, while an encoder is built, and while a slide is encoded.

The proof runs in a fresh interpreter in which opening such a socket is an error from the first line on (Python's audit events
report every socket and every name that is looked up). Sockets within the machine (``AF_UNIX``, which event loops wake
themselves with) are let pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spared_fm.errors import InputError

GUARD = """
import sys
def guard(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        local = event in ("socket.connect", "socket.sendto") and not isinstance(args[1], tuple)
    elif event == "socket.__new__":
        import socket
        local = args[1] == getattr(socket, "AF_UNIX", None)
    else:
        return
    if not local:
        raise RuntimeError(f"NETWORK {event} {args!r}")
sys.addaudithook(guard)
import runpy
runpy.run_module("spared_fm.study.offline", run_name="__main__")
"""
STEPS = ("import the package", "build the encoder", "encode a slide", "read its vectors")


def offline(encoder: str = "stain-bank", *, weights: str | Path | None = None) -> list[dict[str, Any]]:
    """Import the package, build an encoder and encode a small synthetic slide where no network socket can be opened.

    Parameters
    ----------
    encoder, weights
        As for ``encode``.

    Returns
    -------
    list of dict
        One row per step: step, ok, text (what was tried to be opened, or why it failed).
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", GUARD, encoder, str(weights or ""), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    if not rows:
        lines = done.stderr.strip().splitlines()
        return [{"step": STEPS[0], "ok": False, "text": lines[-1] if lines else f"exit code {done.returncode}"}]
    return rows


def _probe(encoder: str, weights: str | None, folder: Path) -> None:
    """Do the steps and print a line for each, in the guarded interpreter."""
    steps = iter(STEPS)
    step = next(steps)
    try:
        _import_all()
        step = _passed(step, steps)
        from spared_fm.encoders.builder import build
        from spared_fm.encoders.spec import resolve

        built = build(resolve(encoder, weights))
        step = _passed(step, steps)
        import numpy as np
        from PIL import Image

        from spared_fm.encoders.golden import golden_patch
        from spared_fm.extract.task import keep
        from spared_fm.study.api import Study

        keep(built)
        Image.fromarray(np.tile(golden_patch(256), (4, 4, 1))).save(folder / "slide.png")
        study = Study(folder / "store", create=True)
        study.ingest(folder / "slide.png", mpp=0.5, min_tissue=0.0)
        study.encode(encoder, weights=weights, key="offline")
        step = _passed(step, steps)
        if not np.isfinite(study.features("slide", "offline")).all():
            raise InputError("the vectors are not finite")
        _passed(step, steps)
    except (InputError, RuntimeError) as error:
        print(json.dumps({"step": step, "ok": False, "text": str(error).splitlines()[0]}))


def _passed(step: str, steps: Any) -> str:
    print(json.dumps({"step": step, "ok": True, "text": "no network socket was opened"}), flush=True)
    return next(steps, "")


def _import_all() -> None:
    import importlib
    import pkgutil

    import spared_fm

    for module in pkgutil.walk_packages(spared_fm.__path__, "spared_fm."):
        if module.name != __spec__.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _, _encoder, _weights, _folder = sys.argv if len(sys.argv) == 4 else ("", "", "", "")
    _probe(_encoder, _weights or None, Path(_folder))
