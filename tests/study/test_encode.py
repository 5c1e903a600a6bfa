from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.encode import choose_slides, find_key
from tests.study.conftest import ENCODER

SLIDES = ["synthetic_p1_s1", "synthetic_p1_s2", "synthetic_p2_s3"]


def test_every_slide_has_the_embedding_in_plain_anndata(study: Study):
    for slide in SLIDES:
        adata = study.slide(slide)
        assert adata.obsm[ENCODER].shape[0] == adata.n_obs
        assert adata.obsm[ENCODER].dtype == np.float16
        np.testing.assert_array_equal(adata.obsm[ENCODER], study.features(slide, ENCODER))


def test_choosing_slides(study: Study):
    layout = study.layout
    assert choose_slides(layout, None) == SLIDES
    assert choose_slides(layout, "*p1*") == SLIDES[:2]
    assert choose_slides(layout, ["*s2", "*p1*"]) == [SLIDES[1], SLIDES[0]]
    with pytest.raises(InputError, match="no slide matches 'x'"):
        choose_slides(layout, "x")


def test_finding_the_key_of_an_encoder(copy: Callable[[], Study]):
    study = copy()
    [wide] = study.encode(ENCODER, patch_um=200.0, slides="*p1*", threads=1)
    layout = study.layout
    assert find_key(layout, SLIDES, ENCODER) == ENCODER
    assert find_key(layout, SLIDES[:2], wide["key"]) == wide["key"]
    with pytest.raises(InputError, match=f"{SLIDES[2]} has no embeddings"):
        find_key(layout, SLIDES, wide["key"])
    with pytest.raises(InputError, match=r"no embeddings of 'uni' \(it has: stain-bank"):
        find_key(layout, SLIDES, "uni")
    layout.files.remove(layout.embedding(SLIDES[0], ENCODER))
    assert find_key(layout, SLIDES[:1], ENCODER) == wide["key"]


def test_one_bad_slide_does_not_cost_the_others(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    node = study.layout.slide(SLIDES[1])
    gone = str(tmp_path / "gone.jpg")
    study.layout.update_attributes(node, lambda known: {**known, "image": {**known["image"], "path": gone}})
    [row] = study.encode(ENCODER, key="again")
    assert row["slides"] == 2
    assert set(row["failed"]) == {SLIDES[1]}
    assert gone in row["failed"][SLIDES[1]]
    assert "again" in study.layout.embeddings(SLIDES[0])
    assert "again" not in study.layout.embeddings(SLIDES[1])
    with pytest.raises(InputError, match=r"gone\.jpg"):
        study.encode(ENCODER, slides=SLIDES[1], key="again")


def test_bad_requests(study: Study):
    with pytest.raises(InputError, match="unknown encoder"):
        study.encode("unii")
    with pytest.raises(InputError, match="one --encoder"):
        study.encode(["timm:resnet18", "timm:resnet34"], weights="random")
    with pytest.raises(InputError, match="float8"):
        study.encode(ENCODER, store_dtype="float8")
    with pytest.raises(InputError, match="patch"):
        study.encode(ENCODER, patch_um=-1)
    with pytest.raises(InputError, match="--workers"):
        study.encode(ENCODER, workers=-1, patch_um=300)
