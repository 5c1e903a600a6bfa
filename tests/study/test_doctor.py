from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.doctor import compare, doctor, tissue_like


def test_the_report(study: Study):
    threads = torch.get_num_threads()
    report = json.loads(json.dumps(doctor(store=study.layout, disk_mib=2), allow_nan=False))
    assert torch.get_num_threads() == threads
    moves = {row["setting"]: row for row in report["moves"]}
    assert list(moves) == [
        "repeated",
        "batch size 1",
        "batch size 2",
        "batch size 7",
        "threads 2",
        "bfloat16 autocast",
        "float16 autocast",
        "float16 storage",
    ]
    assert moves["repeated"]["identical"]
    assert moves["batch size 7"]["max_relative"] < 1e-4
    assert 0 < moves["float16 storage"]["max_relative"] < 1e-3
    assert moves["float16 storage"]["min_cosine"] > 0.999
    assert report["machine"]["cores"] >= 1
    assert "torch" in report["machine"]["versions"]
    assert report["disk"]["mib"] == 2
    assert report["disk"]["mib_per_second"] > 0
    assert study.layout.files.list(".staging") == []


def test_compare_measures_what_it_says():
    reference = np.array([[3.0, 4.0], [0.0, 2.0]])
    row = compare("x", np.array([[3.0, 4.5], [0.0, 2.0]]), reference)
    assert row["max_abs"] == 0.5
    assert row["max_relative"] == pytest.approx(0.1)
    assert row["min_cosine"] == pytest.approx((9 + 18) / 5 / np.hypot(3, 4.5))
    assert not row["identical"]
    assert compare("x", reference, reference)["identical"]
    assert compare("x", np.array([[np.inf, 1], [0, 2]]), reference)["max_abs"] is None


def test_patches_are_neither_flat_nor_noise():
    patches = tissue_like(3, 64)
    assert (patches.shape, patches.dtype) == ((3, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(patches, tissue_like(3, 64))
    grey = patches.mean(axis=3)
    assert grey.std() > 10
    assert np.corrcoef(grey[:, :, 1:].ravel(), grey[:, :, :-1].ravel())[0, 1] > 0.7


def test_unknown_encoder():
    with pytest.raises(InputError, match="unknown encoder"):
        doctor("nope")
