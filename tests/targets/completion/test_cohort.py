from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion.baselines import GeneMean
from spared_fm.targets.completion.cohort import complete_layer, has_lengths, pieces, raw_counts, sections
from spared_fm.targets.completion.data import panel_of
from spared_fm.targets.completion.hiding import section
from tests.targets.completion.slides import study


@pytest.fixture
def cohort():
    """The synthetic study as a cohort of the store, its slides' rows mixed."""
    slides = study()
    given = [section(one) for one in slides]
    obs = pd.DataFrame(
        {
            "slide": np.repeat([one.slide for one in slides], 72),
            "split": np.repeat([one.split for one in slides], 72),
            "total_counts": np.concatenate([one.counts.sum(axis=1) + one.rest_counts for one in slides]),
            "tpm_rest": np.concatenate([one.rest_per_base for one in slides]),
        },
        index=[f"s{i}" for i in range(360)],
    )
    var = pd.DataFrame({"gene_length": slides[0].lengths}, index=[f"g{i}" for i in range(10)])
    built = ad.AnnData(obs=obs, var=var, obsm={"spatial": np.concatenate([one.xy for one in slides])})
    built.layers["counts"] = np.concatenate([one.counts for one in slides])
    built.layers["log1p"] = np.concatenate([one.values for one in given])
    built.layers["mask"] = np.concatenate([one.visible for one in given])
    return built[np.random.default_rng(0).permutation(360)].copy()


def rows_of(cohort, slide):
    return np.flatnonzero(cohort.obs["slide"] == slide)


def test_a_cohort_gives_back_sections_and_counts(cohort):
    found = {one.slide: one for one in raw_counts(cohort)}
    given = sections(cohort, "log1p")
    assert list(found) == list(given) == list(pieces(cohort))
    for slide, one in found.items():
        again = section(one)
        np.testing.assert_allclose(again.values, given[slide].values, rtol=1e-6)
        np.testing.assert_allclose(again.unit, given[slide].unit, rtol=1e-6)
        np.testing.assert_allclose(again.library, given[slide].library, rtol=1e-6)
        np.testing.assert_array_equal(given[slide].xy, cohort.obsm["spatial"][rows_of(cohort, slide)])
        assert one.split == cohort.obs["split"].iloc[rows_of(cohort, slide)[0]]


def test_parts_of_a_slide_in_several_splits_are_apart(cohort):
    cohort.obs.loc[cohort.obs_names[rows_of(cohort, "x")[:30]], "split"] = "val"
    found = pieces(cohort)
    assert {"x/val", "x/test"} <= set(found)
    assert (len(found["x/val"]), len(found["x/test"])) == (30, 42)
    assert sorted(np.concatenate(list(found.values()))) == list(range(360))


def test_a_layer_is_completed_and_measured_entries_stay(cohort):
    given = sections(cohort, "log1p")
    train = [given[name] for name in ("t1", "t2", "t3")]
    completer = GeneMean().fit(train, [], panel_of(train, list(cohort.var_names)))
    values, spread = complete_layer(cohort, completer, "log1p")
    mask = cohort.layers["mask"]
    assert values[mask].tobytes() == cohort.layers["log1p"][mask].tobytes()
    np.testing.assert_allclose(values[~mask], np.broadcast_to(completer.mean, mask.shape)[~mask], rtol=1e-6)
    assert not spread[mask].any()
    assert (spread[~mask] > 0).all()


def test_corrected_values_below_zero_and_layers_without_mask(cohort):
    cohort.layers["c_log1p"] = cohort.layers["log1p"] - 14  # zeros of log1p too
    found = sections(cohort, "c_log1p")["x"]
    assert found.unit is None
    assert (found.values < 0).any()
    del cohort.layers["mask"]
    np.testing.assert_array_equal(
        sections(cohort, "log1p")["x"].visible, cohort.layers["log1p"][rows_of(cohort, "x")] > 0
    )


def test_without_lengths_there_is_lognorm_only(cohort):
    del cohort.var["gene_length"]
    assert not has_lengths(cohort)
    assert sections(cohort, "log1p")["x"].unit is None
    cohort.layers["lognorm"] = np.concatenate([section(one, layer="lognorm").values for one in raw_counts(cohort)])
    assert sections(cohort, "lognorm")["x"].unit is not None


def test_bad_cohorts_are_refused(cohort):
    with pytest.raises(InputError, match="no layer 'lognorm'"):
        sections(cohort, "lognorm")
    cohort.layers["log1p"][rows_of(cohort, "x")[3]] = np.nan
    with pytest.raises(InputError, match="slide x: values holds NaN"):
        sections(cohort, "log1p")
    del cohort.layers["counts"]
    with pytest.raises(InputError, match="no layer 'counts'"):
        raw_counts(cohort)
