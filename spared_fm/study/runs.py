"""Run records: what ran, how long each stage took, and which stage was the limit."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spared_fm.store.layout import Layout

RUNS = "runs"


def record_run(layout: Layout, verb: str, result: Mapping[str, Any]) -> None:
    """Keep a run's figures under ``runs/``.

    Parameters
    ----------
    layout
        The store.
    verb
        What ran.
    result
        JSON-able figures; ``stages`` (stage → seconds) names the limit.
    """
    record = {"verb": verb, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **result}
    if result.get("stages"):
        record["limit"] = limit(result["stages"])
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    layout.files.put_if_absent(f"{RUNS}/{stamp}-{uuid.uuid4().hex[:8]}.json", json.dumps(record, indent=1).encode())


def limit(stages: Mapping[str, float]) -> str:
    """Name the stage that took most of the time."""
    return max(stages, key=lambda stage: stages[stage])


def last_runs(layout: Layout, count: int = 3) -> list[dict[str, Any]]:
    """Give the newest run records, newest first."""
    names = [name for name in layout.files.list(RUNS) if name.endswith(".json")]
    return [json.loads(layout.files.read(f"{RUNS}/{name}")) for name in reversed(names[-count:])]
