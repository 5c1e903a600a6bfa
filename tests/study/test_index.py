from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import spared_fm
from spared_fm.encoders import registry
from spared_fm.errors import InputError
from spared_fm.search import plan as plans
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study import index as indexes
from spared_fm.study.api import Study
from spared_fm.study.index_build import Part, pack
from spared_fm.study.index_open import INDEXES, files, leftovers
from spared_fm.study.usage import entries
from tests.object_stores import place
from tests.study.conftest import ENCODER
from tests.study.indexed import LISTS, SLIDES, card_of, rewrite, small


@pytest.fixture
def study(copy: Callable[[], Study], monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(plans, "choose", small)
    return copy()


@pytest.fixture(scope="module")
def spots(encoded: Path) -> list[str]:
    """Some spots of each slide."""
    whole = spared_fm.open(encoded)
    return [f"{slide}/{whole.slide(slide).obs_names[row]}" for slide in SLIDES for row in (3, 40)]


def write_again(study: Study, slide: str, *chunks: int, absent: bool = False) -> None:
    """Compute chunks of a slide again, with other values or none."""
    array = EmbeddingArray(study.layout, slide, ENCODER)
    for k in chunks:
        rows = array.rows(k)
        values = np.full((len(rows), array.shape[1]), np.nan) if absent else array.read(np.array(rows)) * 1.5
        for name in (f"c/{k}/0", f"receipts/{k}.json"):
            study.layout.files.remove(f"{study.layout.embedding(slide, ENCODER)}/{name}")
        array = EmbeddingArray(study.layout, slide, ENCODER)
        array.write_chunk(k, values, absent=dict.fromkeys(rows, "test") if absent else None, device="test")


def agrees(study: Study, spots: list[str], **options: Any) -> None:
    """With all lists probed an index finds what looking at every row finds."""
    options = {"spots": spots, "k": 12} | options
    alike = {name: card_of(study)[name] for name in ("metric", "standardize")}
    pd.testing.assert_frame_equal(
        study.search(ENCODER, **options), study.search(ENCODER, exact=True, **alike, **options)
    )


@pytest.mark.parametrize(("metric", "standardize"), [("cosine", False), ("ip", False), ("l2", True)])
def test_an_index_finds_what_is_there(study: Study, spots: list[str], metric: str, standardize: bool):
    made = study.index(ENCODER, metric=metric, standardize=standardize, target_recall=1.0)
    assert (made["status"], made["kind"], made["rows"], made["slides"]) == ("built", "ivf-sq", 186, 3)
    assert (made["added"], made["removed"], made["segments"]) == (3, 0, 4)
    assert made["recall"] == 1.0
    assert made["bytes"] == sum(file["bytes"] for file in files(card_of(study)))
    rewrite(study, probes=LISTS)
    agrees(study, spots)
    agrees(study, spots, exclude="slide")
    agrees(study, spots, where={"array_row": "1*"}, one_per_slide=True)
    if not standardize:  # that is by what is searched
        agrees(study, spots, combine="any", slides=SLIDES[:2])
    for other in ({"metric": "l2" if metric != "l2" else "ip"}, {"standardize": not standardize}):
        with pytest.raises(InputError, match=f"is for {next(iter(other))} .*, not"):
            study.search(ENCODER, spots=spots, **other)
    assert study.verify() == []


def test_networks_are_indexed_as_they_are_and_built_ins_standardised(study: Study, monkeypatch: pytest.MonkeyPatch):
    assert study.index(ENCODER)["standardize"]
    monkeypatch.setattr(registry, "BUILT_INS", ())  # now it is taken for a network
    assert study.index(ENCODER)["standardize"], "it stays what it was"
    assert not study.index(ENCODER, rebuild=True)["standardize"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_segments_of_absent_rows_alone_are_not_written(
    study: Study, spots: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
):
    monkeypatch.setattr(indexes, "FEWEST_ROWS", 1)
    monkeypatch.setattr(plans, "choose", lambda *a, **o: dataclasses.replace(small(*a, **o), segment_rows=16))
    write_again(study, SLIDES[1], 0, 1, 2, absent=True)  # rows 0 to 47, which fill segments of their own
    made = study.index(ENCODER, workers=workers)
    held = [tuple(part) for segment in card_of(study)["segments"] for part in segment["parts"]]
    assert (made["rows"], made["segments"], len(held)) == (186, 10, 12)
    rewrite(study, probes=LISTS)
    agrees(study, [spots[0], spots[-1]], k=100)
    assert [row["kind"] for row in study.verify()] == ["absent"] * 3
    assert study.index(ENCODER)["status"] == "unchanged"


def test_recall_is_measured_and_reached(study: Study, spots: list[str]):
    low = study.index(ENCODER, target_recall=0.2)
    assert low["probes"] == 1
    assert 0.2 <= low["recall"] < 1
    again = study.index(ENCODER, target_recall=1.0)  # no row is written for that
    assert (again["status"], again["recall"], again["segments"]) == ("updated", 1.0, low["segments"])
    assert again["probes"] * again["candidates"] > 1
    assert "to reach a recall of 1.0; 1 and 1 were planned" in again["warnings"][0]
    truth = study.search(ENCODER, spots=spots, exact=True)
    rewrite(study, probes=1)
    found = study.search(ENCODER, spots=spots)
    share = np.mean(
        [len(set(a["spot"]) & set(truth.loc[truth["query"] == q, "spot"])) / 10 for q, a in found.groupby("query")]
    )
    assert share == pytest.approx(low["recall"], abs=0.2)


def test_a_recall_that_is_not_reached_fails(study: Study, monkeypatch: pytest.MonkeyPatch):
    from spared_fm.search import recall

    study.index(ENCODER)
    before = study.layout.files.read(f"{INDEXES}/{ENCODER}/card.json")
    names = study.layout.files.list(f"{INDEXES}/{ENCODER}")
    monkeypatch.setattr(recall, "measure", lambda *args, **options: 0.5)
    with pytest.raises(InputError, match=r"reaches a recall@10 of 0.500 with 4 of 4 lists probed"):
        study.index(ENCODER, rebuild=True)
    assert study.layout.files.read(f"{INDEXES}/{ENCODER}/card.json") == before
    assert study.layout.files.list(f"{INDEXES}/{ENCODER}") == names


def test_slides_come_and_go_without_a_rebuild(study: Study, spots: list[str]):
    first = study.index(ENCODER, slides=SLIDES[:2], target_recall=1.0, standardize=False)
    assert (first["rows"], first["slides"]) == (124, 2)
    trained = card_of(study)["trained"]
    with pytest.raises(InputError, match=r"synthetic_p2_s3 is not in it; `spared-fm index .*brings it up to date"):
        study.search(ENCODER, spots=spots)
    study.search(ENCODER, spots=spots, slides=SLIDES[:2])
    assert [row["kind"] for row in study.verify()] == []

    second = study.index(ENCODER)
    assert (second["status"], second["added"], second["removed"], second["why"]) == ("updated", 1, 0, None)
    assert second["segments"] == first["segments"] + 2
    rewrite(study, probes=LISTS)
    agrees(study, spots)
    assert study.index(ENCODER)["status"] == "unchanged"

    study.rm(slides=SLIDES[0], force=True)
    with pytest.raises(InputError, match="slide synthetic_p1_s1 is in it, but has no such embeddings any more"):
        study.search(ENCODER, spots=spots)
    assert [row["kind"] for row in study.verify() if row["key"] == ENCODER] == ["index"]
    [row] = study.info()["indexes"]
    assert "synthetic_p1_s1" in row["problem"]
    third = study.index(ENCODER)
    assert (third["added"], third["removed"], third["rows"]) == (0, 1, 124)
    rewrite(study, probes=LISTS)
    agrees(study, spots[2:])
    assert card_of(study)["trained"] == trained
    assert study.info()["indexes"][0]["problem"] is None


def test_rows_that_change_are_another_slide_to_it(study: Study, spots: list[str]):
    study.index(ENCODER, standardize=False)
    numbers = {slide["slide"]: slide["number"] for slide in card_of(study)["slides"]}
    array = study.layout.files.path(study.layout.embedding(SLIDES[1], ENCODER))
    away = array.rename(study.layout.root / "away")
    with pytest.raises(InputError, match="no such embeddings any more"):
        study.search(ENCODER, spots=spots, slides=SLIDES[0])
    away.rename(array)
    write_again(study, SLIDES[1], 0)
    study.search(ENCODER, spots=spots)
    [row] = study.verify()
    assert row["kind"] == "index"
    assert "rows of slide synthetic_p1_s2 were computed again since" in row["problem"]
    made = study.index(ENCODER)
    assert (made["added"], made["removed"]) == (1, 1)
    again = {slide["slide"]: slide["number"] for slide in card_of(study)["slides"]}
    assert again == numbers | {SLIDES[1]: 3}
    rewrite(study, probes=LISTS)
    agrees(study, spots)


def test_an_index_of_another_recipe_is_refused(study: Study, spots: list[str]):
    study.index(ENCODER)
    rewrite(study, recipe_id="0" * 64)
    with pytest.raises(InputError, match="it is of another recipe than the embeddings of slide"):
        study.search(ENCODER, spots=spots)
    assert "another recipe" in study.verify()[0]["problem"]
    made = study.index(ENCODER)
    assert (made["status"], made["why"]) == ("built", "the embeddings are of another recipe")
    study.search(ENCODER, spots=spots)


def test_why_an_index_is_built_anew(study: Study, spots: list[str], monkeypatch: pytest.MonkeyPatch):
    study.index(ENCODER)
    assert study.index(ENCODER, metric="l2")["why"] == "another metric"
    assert study.index(ENCODER, memory="2GB")["why"] == "another memory"
    assert study.index(ENCODER, standardize=False)["why"] == "another standardize"
    assert study.index(ENCODER)["status"] == "unchanged"
    assert card_of(study)["memory"] == 2 * 10**9
    monkeypatch.setattr(
        plans, "choose", lambda *a, **o: plans.Plan("ivf-sq", 186, 560, "IVF16,SQfp16", 16, 120, 1, 1, 50)
    )
    assert study.index(ENCODER)["why"] == "16 lists suit 186 rows, not 4"
    monkeypatch.setattr(plans, "choose", lambda *a, **o: plans.Plan("ivf-sq", 186, 560, "IVF16,SQ8", 16, 120, 1, 3, 50))
    assert study.index(ENCODER)["why"] == "SQ8 codes suit 186 rows, not SQfp16"
    monkeypatch.undo()
    exact = study.index(ENCODER)
    assert (exact["kind"], exact["why"], exact["recall"]) == ("exact", "exact suits 186 rows, not ivf-sq", 1.0)
    assert study.index(ENCODER)["status"] == "unchanged"
    found = study.search(ENCODER, spots=spots)
    pd.testing.assert_frame_equal(found, study.search(ENCODER, spots=spots, exact=True, metric="l2", standardize=False))


def test_segments_are_joined_and_the_dead_leave(study: Study, spots: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexes, "SMALL_SEGMENTS", 2)
    study.index(ENCODER, slides=SLIDES[0], target_recall=0.5, standardize=False)
    study.index(ENCODER)
    study.rm(slides=SLIDES[1], force=True)
    made = study.index(ENCODER)
    card = card_of(study)
    assert made["segments"] == len(card["segments"]) == 4
    rows = [number for segment in card["segments"] for number, *_ in segment["parts"]]
    assert set(rows) == {0, 2}
    assert card["tombstones"] == []
    rewrite(study, probes=LISTS)
    agrees(study, spots[:2] + spots[4:])
    left = {file["file"] for file in files(card_of(study))}
    names = set(study.layout.files.list(f"{INDEXES}/{ENCODER}"))
    assert {key.split("/")[-1] for key, _ in leftovers(study.layout, -1)} == names - left - {"card.json"}
    stale = sorted(names - left - {"card.json"})
    assert stale
    for name in stale:
        os.utime(study.layout.files.path(f"{INDEXES}/{ENCODER}/{name}"), (0, 0))
    study.index(ENCODER)
    assert set(study.layout.files.list(f"{INDEXES}/{ENCODER}")) == left | {"card.json"}


def test_bad_requests(study: Study):
    for options, message in (
        ({"metric": "moon"}, "moon"),
        ({"memory": "much"}, "'much' is no size"),
        ({"workers": -1}, "--workers"),
        ({"slides": "nope*"}, "no slide matches"),
    ):
        with pytest.raises(InputError, match=message):
            study.index(ENCODER, **options)
    assert study.layout.files.list(INDEXES) == []
    with pytest.raises(InputError, match="has no embeddings of 'uni'"):
        study.index("uni")


def test_rows_are_packed_into_segments():
    parts = [Part(1, "b", 0, 7), Part(0, "a", 0, 5), Part(2, "c", 3, 4)]
    groups = pack(parts, 6)
    assert groups == [[Part(0, "a", 0, 5), Part(1, "b", 0, 1)], [Part(1, "b", 1, 7)], [Part(2, "c", 3, 4)]]
    assert pack([], 6) == []


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.full)])
def test_on_an_object_store(
    kind: str,
    copy: Callable[[], Study],
    spots: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(plans, "choose", small)
    monkeypatch.setenv("SPARED_FM_CACHE", str(tmp_path / "cache"))
    url = f"{place(kind, tmp_path)}/store"
    source, remote = copy(), spared_fm.open(url, create=True)
    for entry in entries(source.layout):
        remote.layout.files.replace(entry.key, source.layout.files.read(entry.key))
    for study in (source, remote):
        study.index(ENCODER, slides=SLIDES[:2])
        study.index(ENCODER)
    pd.testing.assert_frame_equal(remote.search(ENCODER, spots=spots), source.search(ENCODER, spots=spots))
    assert remote.verify() == []
    remote.index(ENCODER, rebuild=True)
    remote.search(ENCODER, spots=spots)


@pytest.mark.full
def test_segments_written_by_workers_find_the_same(study: Study, spots: list[str]):
    here = study.index(ENCODER)
    expected = study.search(ENCODER, spots=spots)
    there = study.index(ENCODER, workers=2, rebuild=True)
    assert {name: there[name] for name in ("rows", "recall")} == {name: here[name] for name in ("rows", "recall")}
    assert there["segments"] == 2 * here["segments"]  # two at a time share the memory that one had
    pd.testing.assert_frame_equal(study.search(ENCODER, spots=spots), expected)
    assert study.verify() == []
