from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import spared_fm
from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.store.nodes import read_node, write_node
from spared_fm.study.api import Study
from spared_fm.study.cohort import target
from spared_fm.study.loader import SpotBatches, _cut, loader
from tests.study.conftest import ENCODER

DOCS = Path(__file__).resolve().parents[2] / "docs"
ABSENT = (3, 20)  # spot rows of each slide that the toy encoder could not read


@pytest.fixture(scope="module")
def prepared(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The shared study, a toy encoder whose vectors name their spot, and a cohort whose rows are in no order of the slides."""
    study = spared_fm.open(shutil.copytree(encoded, tmp_path_factory.mktemp("loader") / "store"))
    layout = study.layout
    for number, slide in enumerate(study.slides):
        recipe = dataclasses.replace(EmbeddingArray(layout, slide, ENCODER).recipe, encoder="toy")
        array = EmbeddingArray.plan(layout, slide, "toy", recipe=recipe, dim=2, chunk_rows=16)
        for k in range(array.n_chunks):
            rows = array.rows(k)
            values = np.column_stack([np.full(len(rows), number), rows]).astype(np.float32)
            array.write_chunk(k, values, absent={row: "torn" for row in ABSENT if row in rows}, device="cpu")
    adata, record = read_node(layout, layout.cohort("c")), layout.attributes(layout.cohort("c"))
    assert record is not None
    order = np.random.default_rng(0).permutation(adata.n_obs)
    write_node(layout, layout.cohort("mixed"), adata[order].copy(), record)
    return study


def batches(study: Study, **options: Any) -> SpotBatches:
    settings = {"encoders": [ENCODER, "toy"], "targets": ["lognorm", "counts"], "batch_size": 10, "block_rows": 16}
    return SpotBatches(study.layout, "mixed", **(settings | {"buffer_blocks": 2} | options))


def rows_of(found: Any) -> list[list[int]]:
    return [batch["row"].tolist() for batch in found]


def expected_rows(study: Study, split: str) -> list[int]:
    """Rows of a part, found the plain way: all of its spots but those that are absent."""
    obs = study.cohort_data("mixed").obs
    there = np.zeros(len(obs), bool)
    for slide in study.slides:
        names = study.slide(slide).obs_names
        there |= ((obs["slide"] == slide) & ~obs["barcode"].isin(names[list(ABSENT)])).to_numpy()
    return np.flatnonzero(there & (obs["split"] == split).to_numpy()).tolist()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_spot_comes_once_with_its_own_values(prepared: Study, split: str, shuffle: bool):
    spots = batches(prepared, split=split, shuffle=shuffle)
    obs = prepared.cohort_data("mixed").obs
    layers = {layer: target(prepared.layout, "mixed", layer) for layer in ("lognorm", "counts", "mask")}
    vectors = {s: prepared.features(s, ENCODER) for s in prepared.slides}
    names = {s: prepared.slide(s).obs_names for s in prepared.slides}
    seen = []
    for batch in spots:
        rows = batch["row"].numpy()
        seen += rows.tolist()
        for layer in ("lognorm", "counts"):
            assert batch["targets"][layer].dtype == torch.float32
            np.testing.assert_array_equal(batch["targets"][layer], layers[layer][rows])
        np.testing.assert_array_equal(batch["mask"], layers["mask"][rows])
        slides, barcodes = obs["slide"].to_numpy()[rows], obs["barcode"].to_numpy()[rows]
        assert [spots.slides[number] for number in batch["slide"]] == slides.tolist()
        for i, (slide, barcode) in enumerate(zip(slides, barcodes, strict=True)):
            spot = names[slide].get_loc(barcode)
            assert batch["features"]["toy"][i].tolist() == [prepared.slides.index(slide), spot]
            np.testing.assert_array_equal(batch["features"][ENCODER][i], vectors[slide][spot].astype(np.float32))
    assert sorted(seen) == expected_rows(prepared, split)
    assert (seen == sorted(seen)) != shuffle
    assert spots.n_spots == len(seen)
    assert spots.n_absent == len(ABSENT) * len(set(obs["slide"][obs["split"] == split]))
    assert spots.dims == {ENCODER: prepared.features(spots.slides[0], ENCODER).shape[1], "toy": 2}
    assert spots.genes == list(prepared.cohort_data("mixed").var_names)


def test_batches_are_full_but_the_last(prepared: Study):
    sizes = [len(batch["row"]) for batch in batches(prepared, batch_size=7)]
    assert set(sizes[:-1]) == {7}
    assert 0 < sizes[-1] <= 7
    n = len(expected_rows(prepared, "train"))
    assert [len(batch["row"]) for batch in batches(prepared, batch_size=1000)] == [n]


def test_the_order_follows_from_seed_and_epoch(prepared: Study):
    one, same = batches(prepared, seed=1), batches(prepared, seed=1)
    first = rows_of(one)
    assert first == rows_of(one) == rows_of(same) != rows_of(batches(prepared, seed=2))
    one.set_epoch(1)
    assert rows_of(one) != first
    one.set_epoch(0)
    assert rows_of(one) == first


def test_memory_is_bounded_by_the_buffer(prepared: Study, monkeypatch: pytest.MonkeyPatch):
    reads, buffers = [], []
    read, fill = EmbeddingArray.read, SpotBatches._fill

    def watched_fill(*args: Any) -> Any:
        buffer = fill(*args)
        buffers.append(len(buffer["", "row"]))
        return buffer

    monkeypatch.setattr(EmbeddingArray, "read", lambda self, rows: reads.append(len(rows)) or read(self, rows))
    monkeypatch.setattr(SpotBatches, "_fill", watched_fill)
    spots = batches(prepared, batch_size=4)
    iterator = iter(spots)
    next(iterator)
    assert len(buffers) == 1  # nothing is read ahead
    list(iterator)
    most = 16 + 16 - 1  # spots of one block
    assert len(buffers) > 1
    assert max(buffers) <= 2 * most + 3 < spots.n_spots  # two blocks, and what was left of a batch
    assert max(reads) <= most


def test_blocks_are_cut_at_chunks_and_have_enough_spots():
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(40_000, 15_000, replace=False))
    blocks = _cut(rows, 1024)
    assert [spot for block in blocks for spot in block] == list(range(15_000))
    assert min(map(len, blocks[:-1])) >= 1024
    assert max(map(len, blocks)) < 2048
    assert all(rows[block[0]] // 1024 > rows[block[0] - 1] // 1024 for block in blocks[1:])


@pytest.mark.full
def test_two_workers_share_an_epoch(prepared: Study):
    spots = batches(prepared)
    shared = DataLoader(spots, batch_size=None, num_workers=2, multiprocessing_context="spawn", persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):  # the workers live on: set_epoch must reach them
        spots.set_epoch(epoch)
        epochs.append(rows_of(shared))
        assert sorted(row for rows in epochs[-1] for row in rows) == expected_rows(prepared, "train")
    assert epochs[0] == epochs[2] != epochs[1]
    assert epochs[0] != rows_of(spots)  # two workers were at it


def test_the_verb_shuffles_train_only(prepared: Study):
    layout = prepared.layout
    for split, shuffle in (("train", True), ("test", False)):
        found = loader(layout, "mixed", "toy", split=split, batch_size=5)
        assert found.dataset.shuffle is shuffle
        assert list(next(iter(found))["targets"]) == ["lognorm"]
    aside = loader(layout, "mixed", "toy", workers=2)
    assert aside.num_workers == 2
    assert aside.multiprocessing_context.get_start_method() == "spawn"


def test_wrong_requests_are_refused_before_training(prepared: Study, tmp_path: Path):
    for options, message in (
        ({"split": "moon"}, "moon"),
        ({"split": "val"}, "no val spot"),
        ({"targets": "moon"}, "no layer 'moon'"),
        ({"encoders": "uni"}, "uni"),
        ({"encoders": []}, "no encoder is named"),
        ({"batch_size": 0}, "batch_size 0"),
    ):
        with pytest.raises(InputError, match=message):
            batches(prepared, **options)
    with pytest.raises(InputError, match="workers -1"):
        loader(prepared.layout, "mixed", "toy", workers=-1)
    study = spared_fm.open(shutil.copytree(str(prepared.layout.root), tmp_path / "copy"))
    slide = expected_slide = study.cohort_data("mixed").obs.query("split == 'train'")["slide"].iloc[0]
    (study.layout.files.path(study.layout.embedding(slide, "toy")) / "receipts" / "1.json").unlink()
    with pytest.raises(IncompleteError, match=f"{expected_slide}: 1 of"):
        batches(study)
    assert batches(study, split="test").n_spots == batches(prepared, split="test").n_spots


def test_the_documented_loop_runs(encoded: Path, capsys: pytest.CaptureFixture[str]):
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "loader.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 20
    exec(code.replace('open("S")', f"open({str(encoded)!r})").replace('loader("C"', 'loader("c"'), {})
    error = float(capsys.readouterr().out.removeprefix("test MSE: "))
    cohort = spared_fm.open(encoded).cohort_data("c")
    test = (cohort.obs["split"] == "test").to_numpy()
    truth = cohort.layers["lognorm"]
    assert error < float(np.var(truth[test]))  # it has learnt the scale of the genes
