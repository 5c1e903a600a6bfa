from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.forecast import forecast

KEY = "stain-bank"


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_it_says_what_encode_then_does_and_writes_nothing(copy: Callable[[], Study]):
    study = copy()
    slide = study.slides[0]
    before = files(study.layout.root)
    [row] = forecast(study.layout, KEY, slides=slide, patch_um=200.0, chunk_rows=16, probe_s=0.05)
    assert files(study.layout.root) == before
    [done] = study.encode(KEY, slides=slide, patch_um=200.0, chunk_rows=16)
    assert (row["key"], row["patches"], row["patches_done"]) == (done["key"], done["patches"], 0)
    new = [path for path in files(study.layout.root) - before if f"/{row['key']}/c/" in str(path)]
    assert row["chunks"] == len(new)
    assert row["bytes"] == sum(path.stat().st_size for path in new)
    assert row["seconds"] == pytest.approx(row["patches"] / row["patches_per_second"], rel=0.05, abs=0.1)


def test_finished_chunks_are_counted_as_done(copy: Callable[[], Study]):
    study = copy()
    [row] = forecast(study.layout, KEY, probe_s=0.05)
    spots = sum(study.slide(slide).n_obs for slide in study.slides)
    assert (row["patches"], row["patches_done"], row["bytes"], row["seconds"]) == (0, spots, 0, 0.0)
    study.layout.files.remove(f"{study.layout.embedding(study.slides[0], KEY)}/receipts/1.json")
    [row] = forecast(study.layout, [KEY], slides=study.slides[0], probe_s=0.05)
    assert (row["patches"], row["chunks"]) == (16, 1)
    assert row["patches_per_second"] > 0


def test_unknown_names(study: Study):
    with pytest.raises(InputError, match="unknown encoder"):
        forecast(study.layout, "nope")
    with pytest.raises(InputError, match="no slide matches"):
        forecast(study.layout, KEY, slides="nope")
