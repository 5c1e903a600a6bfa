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
        record["limit"] = limit(result["stages"], str(result.get("device", "cpu")))
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    layout.files.put_if_absent(f"{RUNS}/{stamp}-{uuid.uuid4().hex[:8]}.json", json.dumps(record, indent=1).encode())


def limit(stages: Mapping[str, float], device: str = "cpu") -> str:
    """Name the stage that a run would gain most from making faster.

    On a CPU all stages share the cores, so it is the longest one. On a GPU the forward pass runs beside the others: it is
    the limit unless it waited for pixels longer than it ran; then the longest of the stages it waited for is.

    Parameters
    ----------
    stages
        Stage → seconds, summed over streams.
    device
        Torch device of the forward pass.
    """
    work = {stage: seconds for stage, seconds in stages.items() if stage != "wait"}
    if device != "cpu":
        if stages.get("wait", 0.0) <= stages["forward"]:
            return "forward"
        del work["forward"]
    return max(work, key=lambda stage: work[stage])


def last_runs(layout: Layout, count: int = 3) -> list[dict[str, Any]]:
    """Give the newest run records, newest first.

    Parameters
    ----------
    layout
        The store.
    count
        At most this many.
    """
    names = [name for name in layout.files.list(RUNS) if name.endswith(".json")]
    return [json.loads(layout.files.read(f"{RUNS}/{name}")) for name in reversed(names[-count:])]
