from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.cohort import cohort_data, cohort_record, target
from spared_fm.study.completing import complete, complete_slide, evaluate
from spared_fm.targets.completion import lowrank

FAST = ("adaptive-median", "neighbor-mean", "gene-mean", "low-rank-gaussian")


def test_a_completed_layer_is_served_with_mask_uncertainty_and_card(copy):
    layout = copy().layout
    scores = evaluate(layout, "c", methods=FAST[:3], rules=(0.3,), repeats=1, show=False)["summary"]
    found = complete(layout, "c", method="gene-mean", source="lognorm", scores=scores)
    assert (found["layer"], found["spread"]) == ("g_lognorm", "g_lognorm_spread")
    record = cohort_record(layout, "c")
    card = record["layers"]["g_lognorm"]
    assert card["parents"] == record["settings_digest"]
    assert card["spread"] == "g_lognorm_spread"
    assert {row["method"] for row in card["scores"]} == {"gene-mean"}
    values, mask = target(layout, "c", "g_lognorm"), target(layout, "c", "mask")
    np.testing.assert_array_equal(values[mask], target(layout, "c", "lognorm")[mask])
    assert (values[~mask] > 0).any()
    spread = target(layout, "c", "g_lognorm_spread")
    assert not spread[mask].any()
    assert (spread[~mask] > 0).any()
    assert found["share_missing_after"] <= found["share_missing_before"] == pytest.approx(1 - mask.mean())


def test_a_fit_is_kept_and_used_again(copy, monkeypatch):
    layout = copy().layout
    first = complete(layout, "c", method="low-rank-gaussian", source="lognorm")
    before = target(layout, "c", "lr_lognorm")

    def never(*args, **kwargs):
        raise AssertionError("fitted again")

    monkeypatch.setattr(lowrank.LowRankGaussian, "fit", never)
    assert complete(layout, "c", method="low-rank-gaussian", source="lognorm")["fit_id"] == first["fit_id"]
    assert target(layout, "c", "lr_lognorm").tobytes() == before.tobytes()
    slide = cohort_data(layout, "c")
    slide = slide[slide.obs["split"] == "test"].copy()
    values, spread = complete_slide(layout, "c", slide, method="low-rank-gaussian", source="lognorm")
    rows = (cohort_data(layout, "c").obs["split"] == "test").to_numpy()
    np.testing.assert_array_equal(values, before[rows])
    assert spread is not None
    with pytest.raises(InputError, match="another panel"):
        complete_slide(layout, "c", slide[:, ::-1].copy(), method="low-rank-gaussian", source="lognorm")
    with pytest.raises(InputError, match="gene-mean is not fitted on 'lognorm'"):
        complete_slide(layout, "c", slide, method="gene-mean", source="lognorm")
    assert not list(layout.root.glob("completers/c/*.training"))


def test_methods_are_scored_on_the_same_entries(copy):
    found = evaluate(copy().layout, "c", methods=FAST, source="lognorm", rules=("spared", 0.5), repeats=2, show=False)
    entries = {}
    for row in found["rows"]:
        if row["method"] != "noise-floor":
            key = tuple(row[k] for k in ("split", "slide", "share_hidden", "repeat"))
            entries.setdefault(key, set()).add((row["entries"], row["hidden"]))
    assert all(len(one) == 1 for one in entries.values())
    assert {row["method"] for row in found["summary"]} == {*FAST, "noise-floor"}
    assert {"mse", "raw_mse", "zeros_mse"} == set(found["scored"])


def test_layers_of_others_are_not_overwritten_and_bad_questions_refused(copy):
    study: Study = copy()
    layout = study.layout
    with pytest.raises(InputError, match="layer 'lognorm' that was built with it"):
        complete(layout, "c", method="gene-mean", source="lognorm", layer="lognorm")
    with pytest.raises(InputError, match="unknown completion 'magic'"):
        complete(layout, "c", method="magic")
    with pytest.raises(InputError, match="no layer 'none'"):
        complete(layout, "c", method="gene-mean", source="none")
    with pytest.raises(InputError, match="'d_lognorm' cannot be computed"):
        evaluate(layout, "c", methods=FAST[:1], source="d_lognorm")
    with pytest.raises(InputError, match="no cohort 'other'"):
        evaluate(layout, "other")
