"""SpaRED's metrics against recorded values of the released functions (see ``record_spared_metrics``)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from spared_fm.benchmark.metrics import score
from spared_fm.benchmark.spared_metrics import get_metrics
from spared_fm.errors import InputError
from tests.benchmark.record_spared_metrics import CASES, EDGES, GOLDEN, WITH_DETAILS, case

SIX = ("PCC-Gene", "PCC-Patch", "R2-Gene", "R2-Patch", "MSE", "MAE")


def same(found, expected):
    """To 1e-6 of the value or of one, whichever is larger; recorded to nine digits."""
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_as_released_on_recorded_cases():
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == CASES == 200
    for seed, expected in enumerate(golden):
        edge, truth, predicted, mask = case(seed)
        found = get_metrics(truth, predicted, mask, detailed=seed % WITH_DETAILS == 0)
        assert list(found) == list(expected), (seed, edge)
        for key, value in expected.items():
            try:
                same(found[key], value)
            except AssertionError as error:
                raise AssertionError(f"case {seed} ({edge}), {key}") from error


def test_recorded_cases_hold_the_edges():
    golden = json.loads(GOLDEN.read_text())
    undefined = {EDGES[i % len(EDGES)] for i, row in enumerate(golden) if math.isnan(row["Global"])}
    assert {"constant_prediction_gene", "constant_prediction_spot", "one_spot", "one_gene"} <= undefined
    assert {EDGES[i % len(EDGES)] for i, row in enumerate(golden) if row["R2-Gene"] == -np.inf} >= {
        "constant_truth_gene"
    }
    assert GOLDEN.stat().st_size <= 100_000


def test_plain_cases_agree_with_the_safe_variant():
    _, truth, predicted, mask = case(EDGES.index("all_measured"))
    found, safe = get_metrics(truth, predicted, mask), score(truth, predicted)
    for key in SIX:
        assert found[key] == pytest.approx(safe[key.lower().replace("-", "_")], abs=1e-12)
    assert found["Global"] == pytest.approx(sum(found[k] for k in SIX[:4]) - found["MSE"] - found["MAE"])


def test_the_safe_variant_survives_one_bad_gene():
    _, truth, predicted, mask = case(EDGES.index("constant_prediction_gene"))
    assert math.isnan(get_metrics(truth, predicted, mask)["Global"])
    assert np.isfinite(score(truth, predicted, mask=mask, which="measured")["pcc_gene"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_truth_scores_minus_infinity_whatever_its_mean_is_rounded_to(dtype):
    for spots in range(3, 20):
        truth = np.full((spots, 2), 0.1, dtype=dtype)
        truth[:, 1] = np.arange(spots)
        predicted = truth + np.arange(2 * spots, dtype=dtype).reshape(spots, 2)
        found = get_metrics(truth, predicted, np.ones(truth.shape, bool), detailed=True)
        assert found["detailed_R2-Gene"][0] == found["R2-Gene"] == -np.inf
        assert found["detailed_PCC-Gene"][0] == 0


def test_takes_tensors_and_leaves_inputs_alone():
    _, truth, predicted, mask = case(0)
    before = truth.copy(), predicted.copy(), mask.copy()
    assert get_metrics(*map(torch.from_numpy, (truth, predicted, mask))) == get_metrics(truth, predicted, mask)
    for given, kept in zip((truth, predicted, mask), before, strict=True):
        np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize(
    ("truth", "predicted", "mask", "words"),
    [
        (np.ones(3), np.ones(3), np.ones(3, bool), "shape"),
        (np.ones((0, 2)), np.ones((0, 2)), np.ones((0, 2), bool), "one of each"),
        (np.ones((3, 2)), np.ones((2, 2)), np.ones((3, 2), bool), "make them one"),
        (np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 1), bool), "make them one"),
        (np.ones((3, 2)), np.ones((3, 2)), np.ones((3, 2)), "bool"),
    ],
)
def test_bad_input(truth, predicted, mask, words):
    with pytest.raises(InputError, match=words):
        get_metrics(truth, predicted, mask)
