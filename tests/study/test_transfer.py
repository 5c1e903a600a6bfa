from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.search import COLUMNS
from spared_fm.study.transfer import _votes
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"


def spot_of(study: Study, row: int = 5) -> str:
    return f"{SLIDE}/{study.slide(SLIDE).obs_names[row]}"


def test_a_label_is_the_weighted_vote(study: Study):
    [row] = study.transfer(ENCODER, spots=[spot_of(study)], label="slide", k=9).to_dict("records")
    evidence = row["evidence"]
    assert [hit["spot"] for hit in evidence] == list(study.search(ENCODER, spots=[spot_of(study)], k=9)["spot"])
    assert set(evidence[0]) == {*COLUMNS, "weight"}
    weights = np.array([hit["weight"] for hit in evidence])
    distance = np.sqrt(2 - 2 * np.array([hit["similarity"] for hit in evidence]))
    np.testing.assert_allclose(weights, (1 / distance) / (1 / distance).sum(), rtol=1e-6)
    shares = {s: sum(h["weight"] for h in evidence if h["slide"] == s) for s in {h["slide"] for h in evidence}}
    assert row["label"] == max(shares, key=lambda slide: shares[slide])
    assert row["share"] == pytest.approx(shares[row["label"]])
    assert row["shares"] == pytest.approx(shares)
    assert row["neighbours"] == 9


def test_expression_is_the_weighted_mean(study: Study):
    cohort = study.cohort_data("c")
    gene = str(cohort.var_names[3])
    options = {"spots": [spot_of(study)], "k": 6, "cohort": "c", "weighting": "uniform"}
    [row] = study.transfer(ENCODER, genes=[gene], layer="lognorm", **options).to_dict("records")
    joined = cohort.obs["slide"].astype(str) + "/" + cohort.obs["barcode"].astype(str)
    at = [joined.tolist().index(hit["spot"]) for hit in row["evidence"]]
    values = np.asarray(cohort.layers["lognorm"])[at, 3]
    assert [hit[f"lognorm:{gene}"] for hit in row["evidence"]] == pytest.approx(values.tolist())
    assert row[f"lognorm:{gene}"] == pytest.approx(values.mean(), rel=1e-5)
    assert row[f"lognorm:{gene} sd"] == pytest.approx(values.std(), rel=1e-5)


def test_votes():
    np.testing.assert_allclose(_votes(np.array([-1.0, -4.0]), "l2", "distance"), [2 / 3, 1 / 3])
    np.testing.assert_allclose(_votes(np.array([-0.0, -4.0]), "l2", "distance"), [1, 0])
    np.testing.assert_allclose(_votes(np.array([1 - 1e-7, 0.5, 0.5]), "cosine", "distance"), [1, 0, 0])
    np.testing.assert_allclose(_votes(np.array([5.0, 4.0]), "ip", "uniform"), [0.5, 0.5])


def test_bad_transfers(study: Study):
    spots = [spot_of(study)]
    for options, message in (
        ({}, "give what to transfer"),
        ({"label": "slide", "genes": ["a"]}, "give what to transfer"),
        ({"label": "nope"}, "has a column 'nope'"),
        ({"label": "slide", "weighting": "magic"}, "magic"),
        ({"label": "slide", "metric": "ip"}, "no distance"),
        ({"label": "slide", "layer": "counts"}, "--layer goes with --gene"),
        ({"genes": ["nope"]}, "no gene 'nope'"),
        ({"label": "slide", "slides": SLIDE, "exclude": "slide"}, "exclude less"),
    ):
        with pytest.raises(InputError, match=message):
            study.transfer(ENCODER, spots=spots, **options)
