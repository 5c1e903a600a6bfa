from __future__ import annotations

import pytest

from spared_fm.store.layout import Layout
from spared_fm.study.runs import last_runs, limit, record_run


@pytest.mark.parametrize(
    ("device", "stages", "expected"),
    [
        ("cpu", {"decode": 5.0, "forward": 3.0, "wait": 9.0}, "decode"),
        ("cuda", {"decode": 50.0, "forward": 3.0, "wait": 1.0}, "forward"),
        ("cuda", {"decode": 50.0, "transform": 60.0, "forward": 3.0, "wait": 4.0}, "transform"),
    ],
)
def test_the_limit_is_the_stage_worth_making_faster(device: str, stages: dict[str, float], expected: str):
    assert limit(stages, device) == expected


def test_the_newest_runs_come_first():
    layout = Layout.create("memory://runs-test/store")
    for name in ("20260101T000000-b", "20260102T000000-a", "20251231T000000-z"):
        layout.files.replace(f"runs/{name}.json", b'{"verb": "%s"}' % name.encode())
    assert [run["verb"][:8] for run in last_runs(layout, 2)] == ["20260102", "20260101"]
    record_run(layout, "encode", {"stages": {"read": 1.0, "forward": 2.0}})
    assert last_runs(layout, 1)[0]["limit"] == "forward"
