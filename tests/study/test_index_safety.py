from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.search import plan as plans
from spared_fm.study import index as indexes
from spared_fm.study.api import Study
from spared_fm.study.index_open import INDEXES, files, open_index
from tests.study.conftest import ENCODER
from tests.study.indexed import SLIDES, card_of, rewrite, small


@pytest.fixture
def study(copy: Callable[[], Study], monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(plans, "choose", small)
    return copy()


@pytest.fixture(scope="module")
def spots(encoded: Path) -> list[str]:
    """Some spots of each slide."""
    whole = spared_fm.open(encoded)
    return [f"{slide}/{whole.slide(slide).obs_names[row]}" for slide in SLIDES for row in (3, 40)]


def test_damage_is_named(study: Study, spots: list[str]):
    study.index(ENCODER)
    folder = study.layout.files.path(f"{INDEXES}/{ENCODER}")
    card = card_of(study)
    segment, whole = folder / card["segments"][0]["file"], (folder / "card.json").read_bytes()
    data = segment.read_bytes()
    query = {"spots": spots}

    segment.write_bytes(data[:-1000] + bytes(8) + data[-992:])  # where only a checksum tells
    [row] = study.verify()
    assert segment.name in row["problem"]
    for broken in (data[:-5], b"no" + data[2:]):
        segment.write_bytes(broken)
        with pytest.raises(InputError, match=segment.name):
            study.search(ENCODER, **query)
        assert segment.name in study.verify()[0]["problem"]
    segment.unlink()
    with pytest.raises(InputError, match=segment.name):
        study.search(ENCODER, **query)
    segment.write_bytes(data)
    rewrite(study, dim=8)
    with pytest.raises(InputError, match="of 560 dimensions, not 8"):
        study.search(ENCODER, **query)
    for text, message in (
        (b"{", "card.json is damaged"),
        (b"{}", "card.json is damaged"),
        (whole.replace(b'"format": 1', b'"format": 99'), "index format 99 is newer than 1"),
    ):
        (folder / "card.json").write_bytes(text)
        with pytest.raises(InputError, match=message):
            study.search(ENCODER, **query)
        assert message in study.verify()[0]["problem"]
        assert message in study.info()["indexes"][0]["problem"]
    (folder / "card.json").write_bytes(b"{")
    with pytest.raises(InputError, match="--rebuild` makes the index again"):
        study.index(ENCODER)
    assert study.index(ENCODER, rebuild=True)["status"] == "built"
    assert study.verify() == []


def test_damage_that_is_seen_is_mended_by_the_next_run(study: Study, spots: list[str]):
    study.index(ENCODER)
    segment = study.layout.files.path(f"{INDEXES}/{ENCODER}/{card_of(study)['segments'][0]['file']}")
    segment.unlink()
    assert study.index(ENCODER)["why"] == "a file of it is damaged or gone"
    study.search(ENCODER, spots=spots)
    segment = segment.parent / card_of(study)["segments"][0]["file"]
    data = segment.read_bytes()
    segment.write_bytes(data[:-1000] + bytes(8) + data[-992:])  # this takes reading all of it
    assert "--rebuild`" in study.verify()[0]["problem"]


def test_a_failure_after_the_card_was_written_removes_none_of_its_files(study: Study, monkeypatch: pytest.MonkeyPatch):
    real = type(study.layout.files).replace

    def replace(self: Any, key: str, data: bytes) -> None:
        real(self, key, data)
        if key.endswith("card.json"):
            raise OSError("the disk failed to say that it was written")

    with monkeypatch.context() as patched:
        patched.setattr(type(study.layout.files), "replace", replace)
        with pytest.raises(OSError, match="failed to say"):
            study.index(ENCODER)
    assert study.verify() == []


def test_two_runs_at_once_do_not_mix(study: Study, monkeypatch: pytest.MonkeyPatch):
    study.index(ENCODER, slides=SLIDES[:2])
    real = indexes._measure

    def meanwhile(*args: Any) -> list[str]:
        monkeypatch.setattr(indexes, "_measure", real)
        study.index(ENCODER)
        return real(*args)

    monkeypatch.setattr(indexes, "_measure", meanwhile)
    with pytest.raises(InputError, match="another run has changed the index"):
        study.index(ENCODER)
    names = {file["file"] for file in files(card_of(study))}
    assert set(study.layout.files.list(f"{INDEXES}/{ENCODER}")) == names | {"card.json"}
    assert study.verify() == []


def test_a_reader_whose_index_was_swept_away_takes_the_new_one(
    study: Study, spots: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(indexes, "GRACE_S", -1.0)
    study.index(ENCODER)
    read = card_of(study)
    study.index(ENCODER, rebuild=True)
    study.index(ENCODER, rebuild=True)  # removes what the first one made
    assert not {file["file"] for file in files(read)} & set(study.layout.files.list(f"{INDEXES}/{ENCODER}"))
    found = open_index(study.layout, read, SLIDES)
    first = found.rows.vectors(np.array([0]))
    assert found.nearest(first, 3, found.rows.kept(dict.fromkeys(SLIDES)))[0][0, 0] == 0
    rewrite(study, segments=read["segments"])  # a card in force that lists what is gone is damage
    with pytest.raises(InputError, match=r"segment-.*\.faiss is gone"):
        study.search(ENCODER, spots=spots)


READER = """
import sys, pathlib, warnings
import spared_fm
from spared_fm.study import search as searches
searches.EXACT_ROWS = 10  # without an index there is a warning
warnings.simplefilter("error", UserWarning)
store, stop, spot = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
searches, seen = 0, set()
while not stop.exists() or searches < 3:
    found = spared_fm.open(store).search("stain-bank", spots=[spot], k=10)
    assert len(found) == 10, found
    seen.add(tuple(found["spot"]))
    searches += 1
    if searches == 1:
        print("reading", flush=True)
assert len(seen) == 1, seen
print(searches)
"""


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.full)])
def test_readers_keep_the_old_index_until_the_new_one_is_whole(
    count: int, study: Study, spots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(indexes, "GRACE_S", 0.0)  # what a reader is about to open may be swept away
    study.index(ENCODER, target_recall=1.0)
    command = [sys.executable, "-c", READER, str(study.layout.root), str(tmp_path / "stop"), spots[0]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(count)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        for seed in range(4):
            study.index(ENCODER, rebuild=True, target_recall=1.0, seed=seed)
        (tmp_path / "stop").touch()
        for reader in readers:
            out, err = reader.communicate(timeout=120)
            assert reader.returncode == 0, err
            assert int(out) >= 3
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert study.verify() == []
