from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spared_fm.extract import source
from spared_fm.extract.task import STAGES
from spared_fm.store.layout import Layout
from spared_fm.study.api import Study
from spared_fm.study.info import info
from spared_fm.study.usage import entries, total

KEY = "stain-bank"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_disk_use_adds_up(copy: Callable[[], Study]):
    study = copy()
    study.fit("c", encoder=KEY, head="gene-mean")
    found = info(study.layout)
    assert found["bytes"]["total"] == size(study.layout.root)
    assert sum(value for name, value in found["bytes"].items() if name != "total") == found["bytes"]["total"]
    for row in found["slides"]:
        node = study.layout.files.path(study.layout.slide(row["slide"]))
        array = row["embeddings"][KEY]
        assert array["bytes"] == size(node / "obsm" / KEY)
        assert row["bytes"] + array["bytes"] == size(node)
        assert array["finished"] == array["chunks"]
    [cohort] = found["cohorts"]
    assert cohort["bytes"] == found["bytes"]["cohorts"] + found["bytes"]["heads"]
    assert found["bytes"]["heads"] > 0


def test_the_last_run_tells_what_held_it_up(copy: Callable[[], Study]):
    study = copy()
    source._image.cache_clear()  # or nothing is left to decode
    study.encode("stain-bank", key="again")
    run = info(study.layout)["runs"][0]
    assert run["keys"] == ["again"]
    assert set(run["stages"]) == set(STAGES)
    assert run["stages"][run["limit"]] == max(run["stages"][stage] for stage in STAGES if stage != "wait")
    for stage in ("decode", "resample", "transform", "forward", "write"):
        assert run["stages"][stage] > 0
    assert min(run["stages"].values()) >= 0


def test_sizes_on_an_object_store():
    layout = Layout.create("memory://usage-test/store")
    layout.files.replace("runs/a.json", b"12345")
    [entry] = entries(layout, "runs")
    assert (entry.key, entry.bytes) == ("runs/a.json", 5)
    assert 0 <= entry.age < 60
    assert total(layout, "runs/a.json") == 5
    assert total(layout, "nothing") == 0
    assert total(layout, "") > 5
