"""Token grids and views through the real `encode`: stored beside the slide, one forward pass with the embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from spared_fm.encoders.builder import build
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from spared_fm.extract import task as tasks
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.study.api import Study
from tests.encoders.own_rows import write

SLIDE = "synthetic_p1_s1"


@pytest.fixture
def options(tmp_path: Path) -> dict:
    return {"registry": write(tmp_path, tiny={}), "weights": "random", "slides": SLIDE, "chunk_rows": 20, "key": "tiny"}


def patches_of(study: Study, rows: int) -> np.ndarray:
    record = study.layout.attributes(study.layout.slide(SLIDE))
    assert record is not None
    xy = study.slide(SLIDE).obsm["spatial"][:rows]
    with open_image(record["image"]["path"]) as image:
        return PatchReader(image, record["mpp"], PatchSpec(16.0, 64)).read(xy)


def test_a_grid_of_patch_tokens_is_stored_beside_the_slide(
    make_study: Callable[..., Study], options: dict, monkeypatch: pytest.MonkeyPatch
):
    study = make_study()
    tasks._encoders.clear()
    batches = []
    together = tasks.forward_together
    monkeypatch.setattr(
        tasks, "forward_together", lambda encoders, pixels: batches.append(len(encoders)) or together(encoders, pixels)
    )
    pooled, grid = study.encode("tiny", tokens=2, **options)
    assert set(batches) == {2}  # one forward pass fills both
    assert (pooled["key"], grid["key"]) == ("tiny", "tokens/tiny")
    node = study.layout.embedding(SLIDE, "tokens/tiny")
    assert node.endswith(f"slides/{SLIDE}.tokens/tiny")
    found = study.tokens(SLIDE, "tiny")
    plain = ad.read_zarr(study.layout.zarr_store(study.layout.slide(SLIDE)))
    assert found.shape == (plain.n_obs, 2, 2, 192)
    assert set(plain.obsm) == {"spatial", "tiny"}  # AnnData does not load the grids
    assert study.layout.slides() == sorted(study.layout.slides())
    assert f"{SLIDE}.tokens" not in study.layout.slides()

    encoder = build(resolve("tiny", "random", registry=options["registry"]))
    with torch.inference_mode():
        tokens = encoder.module(encoder.transform(patches_of(study, 6)))[:, 5:].reshape(6, 4, 4, 192).numpy()
    expected = tokens.reshape(6, 2, 2, 2, 2, 192).mean(axis=(2, 4))
    np.testing.assert_allclose(found[:6], expected, atol=5e-3)  # float16


def test_house_keeping_knows_the_grids(make_study: Callable[..., Study], options: dict):
    study = make_study()
    study.encode("tiny", tokens=2, **options)
    row = next(row for row in study.info()["slides"] if row["slide"] == SLIDE)
    assert row["embeddings"]["tokens/tiny"]["bytes"] > row["embeddings"]["tiny"]["bytes"]
    assert study.info()["bytes"]["other"] < 10_000
    assert study.verify() == []
    chunk = study.layout.files.path(f"{study.layout.embedding(SLIDE, 'tokens/tiny')}/c/1/0")
    clean = chunk.read_bytes()
    chunk.write_bytes(b"\1" + clean[1:])
    [found] = study.verify()
    assert (found["key"], found["chunk"], found["kind"]) == ("tokens/tiny", 1, "checksum")
    [found] = study.verify(repair=True, weights="random")
    assert found["repaired"]
    assert chunk.read_bytes() == clean
    assert {row["kind"] for row in study.rm(slides=SLIDE)} == {"slide", "tokens"}
    assert not chunk.exists()


def test_eight_views(make_study: Callable[..., Study], options: dict):
    study = make_study()
    study.encode("tiny", views="dihedral", **{**options, "key": "eight"})
    study.encode("tiny", views="dihedral-mean", **{**options, "key": "mean"})
    eight, mean = study.features(SLIDE, "eight"), study.features(SLIDE, "mean")
    assert eight.shape[1] == 8 * mean.shape[1]
    np.testing.assert_allclose(
        eight.astype(np.float32).reshape(len(eight), 8, -1).mean(axis=1), mean.astype(np.float32), atol=2e-3
    )
    encoder = build(resolve("tiny", "random", registry=options["registry"]))
    patches = patches_of(study, 4)
    turned = encoder.encode(np.ascontiguousarray(np.rot90(patches, axes=(1, 2))))
    gaps = [np.abs(eight[:4].reshape(4, 8, -1)[:, view] - turned).max() for view in range(8)]
    assert min(gaps) < 5e-3 < sorted(gaps)[1]  # exactly one of the views is the turned patch


def test_an_encoder_without_tokens(make_study: Callable[..., Study]):
    with pytest.raises(InputError, match="no grid of patch tokens"):
        make_study().encode("stain-bank", tokens=7)
