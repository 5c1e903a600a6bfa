from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study

SLIDE = "synthetic_p1_s1"


def chunks(study: Study, key: str = "stain-bank") -> dict[str, bytes]:
    folder = Path(study.layout.root) / study.layout.embedding(SLIDE, key) / "c"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_running_again_does_nothing(make_study: Callable[..., Study]):
    study = make_study()
    [first] = study.encode("stain-bank", chunk_rows=16, threads=1)
    before = chunks(study)
    [second] = study.encode("stain-bank")
    assert first["patches"] == study.slide(SLIDE).n_obs
    assert second["patches"] == 0
    assert second["chunks_done_before"] == len(before)
    assert chunks(study) == before


def test_worker_processes_give_the_same_bytes(make_study: Callable[..., Study]):
    alone, many = make_study("alone"), make_study("many")
    options = {"chunk_rows": 16, "batch_size": 8, "threads": 1}
    alone.encode("stain-bank", **options)
    many.encode("stain-bank", workers=2, **options)
    assert chunks(alone) == chunks(many)


def test_a_scheduler_that_is_already_there(make_study: Callable[..., Study]):
    from distributed import LocalCluster

    study, alone = make_study(), make_study("alone")
    alone.encode("stain-bank", threads=1)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        study.encode("stain-bank", scheduler=cluster.scheduler_address, threads=1)
    assert chunks(study) == chunks(alone)


def test_no_scheduler_there(make_study: Callable[..., Study]):
    with pytest.raises(InputError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        make_study().encode("stain-bank", scheduler="tcp://127.0.0.1:9")


def test_an_error_in_a_worker_reaches_the_caller(make_study: Callable[..., Study], tmp_path: Path):
    study = make_study()
    study.encode("stain-bank", chunk_rows=16, threads=1)
    layout = study.layout
    receipt = layout.root / layout.embedding(SLIDE, "stain-bank") / "receipts"
    (receipt / "1.json").unlink()
    record = layout.attributes(layout.slide(SLIDE))
    assert record is not None
    attributes = layout.attributes(layout.embedding(SLIDE, "stain-bank"))
    assert attributes is not None
    attributes["recipe"]["weights"] = "stain-bank/999"
    layout.update_attributes(layout.embedding(SLIDE, "stain-bank"), lambda _: attributes)
    with pytest.raises(InputError, match="the array has stain-bank/999"):
        study.encode("stain-bank", workers=1)
