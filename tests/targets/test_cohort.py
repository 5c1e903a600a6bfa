from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.cohort import build_cohort
from spared_fm.targets.panel import select_panel

SPLIT = {"a": "train", "b": "train", "c": "test"}
PATIENTS = {"a": "p1", "b": "p1", "c": None}


@pytest.fixture
def slides(make_slide):
    made = {s: make_slide(i, rows=4 + i) for i, s in enumerate("abc")}
    made["a"] = made["a"][:, ::-1].copy()  # gene order differs between slides
    made["b"] = made["b"][:, 2:].copy()  # and so do the genes
    return made


def test_every_entry_is_the_slides_own(slides):
    cohort = build_cohort(slides, split=SPLIT, patients=PATIENTS, n_genes=10)
    assert cohort.X is None
    assert cohort.layers["counts"].dtype == np.int32
    assert cohort.layers["lognorm"].dtype == np.float32
    assert cohort.layers["mask"].dtype == bool
    start = 0
    for name, slide in slides.items():
        part = cohort[start : start + slide.n_obs]
        start += slide.n_obs
        assert list(part.obs_names) == [f"{name}/{b}" for b in slide.obs_names]
        assert list(part.obs["barcode"]) == list(slide.obs_names)
        assert set(part.obs["slide"]) == {name}
        assert set(part.obs["split"]) == {SPLIT[name]}
        counts = slide[:, cohort.var_names].X.toarray()
        totals = slide.X.toarray().sum(axis=1)  # over all genes of the slide, not the shared ones
        np.testing.assert_array_equal(part.layers["counts"], counts)
        np.testing.assert_array_equal(part.layers["mask"], counts > 0)
        np.testing.assert_array_equal(part.obs["total_counts"], totals)
        np.testing.assert_allclose(part.layers["lognorm"], np.log1p(counts / totals[:, None] * 1e4), rtol=1e-6)
        np.testing.assert_array_equal(part.obsm["spatial"], slide.obsm["spatial"])
        np.testing.assert_array_equal(part.obs["array_col"], slide.obs["array_col"])
    assert start == cohort.n_obs


@pytest.mark.parametrize("panel", ["variance", "moran", "hvg"])
def test_panel_is_blind_to_the_test_slides(slides, panel):
    fitted = build_cohort(slides, split=SPLIT, patients=PATIENTS, n_genes=8, panel=panel)
    changed = slides["c"].copy()
    dense = changed.X.toarray() * 50
    dense[:, 5] = 10_000
    changed.X = dense
    again = build_cohort(slides | {"c": changed}, split=SPLIT, patients=PATIENTS, n_genes=8, panel=panel)
    pd.testing.assert_frame_equal(fitted.var, again.var)
    train = {s: slides[s] for s in "ab"}
    totals = {s: slides[s].X.toarray().sum(axis=1) for s in "ab"}
    shared = sorted(set(slides["a"].var_names) & set(slides["b"].var_names))
    expected = select_panel(train, n_genes=8, panel=panel, genes=shared, totals=totals)
    assert list(fitted.var_names) == expected
    assert fitted.var["panel_rank"].tolist() == list(range(8))


def test_loaders_give_the_same_cohort_one_slide_at_a_time(slides):
    alive: list[str] = []

    def loader(name):
        def load():
            alive.append(name)
            return slides[name].copy()

        return load

    lazy = build_cohort({s: loader(s) for s in slides}, split=SPLIT, patients=PATIENTS, n_genes=6)
    eager = build_cohort(slides, split=SPLIT, patients=PATIENTS, n_genes=6)
    pd.testing.assert_frame_equal(lazy.obs, eager.obs)
    np.testing.assert_array_equal(lazy.layers["lognorm"], eager.layers["lognorm"])
    assert alive == ["a", "b", "c", "a", "b", "a", "b", "c"]


def test_missing_patient_is_missing(slides):
    cohort = build_cohort(slides, split=SPLIT, patients=PATIENTS, n_genes=4)
    by_slide = cohort.obs.groupby("slide", observed=True)["patient"].first()
    assert by_slide["a"] == "p1"
    assert pd.isna(by_slide["c"])


def test_array_positions_only_where_known(slides):
    del slides["b"].obs["array_row"]
    cohort = build_cohort(slides, split=SPLIT, patients={}, n_genes=4)
    assert cohort.obs["array_row"][cohort.obs["slide"] == "b"].isna().all()
    assert cohort.obs["array_row"][cohort.obs["slide"] == "a"].notna().all()


def test_fractional_counts_are_kept(slides):
    slides["a"].X = slides["a"].X.astype(np.float32) * 0.5
    cohort = build_cohort(slides, split=SPLIT, patients={}, n_genes=4)
    assert cohort.layers["counts"].dtype == np.float32
    np.testing.assert_array_equal(cohort.layers["counts"][:28], slides["a"][:, cohort.var_names].X.toarray())


def test_empty_spot_is_zero_everywhere(slides):
    dense = slides["a"].X.toarray()
    dense[2] = 0
    slides["a"].X = dense
    cohort = build_cohort(slides, split=SPLIT, patients={}, n_genes=4)
    assert not cohort.layers["mask"][2].any()
    assert (cohort.layers["lognorm"][2] == 0).all()


def test_round_trip(slides, tmp_path):
    cohort = build_cohort(slides, split=SPLIT, patients={}, n_genes=4)
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    again = ad.read_h5ad(tmp_path / "cohort.h5ad")
    np.testing.assert_array_equal(again.layers["lognorm"], cohort.layers["lognorm"])
    assert list(again.uns["cohort"]["train_slides"]) == ["a", "b"]


def test_bad_cohorts_are_refused(slides, make_slide):
    def build(slides=slides, split=SPLIT, **more):
        return build_cohort(slides, split=split, patients={}, **({"n_genes": 4} | more))

    with pytest.raises(InputError, match="no training slide"):
        build(split=dict.fromkeys("abc", "test"))
    with pytest.raises(InputError, match="slide c has no split"):
        build(split={"a": "train", "b": "test"})
    with pytest.raises(InputError, match="split 'training'"):
        build(split={**SPLIT, "c": "training"})
    with pytest.raises(InputError, match="at least one slide"):
        build(slides={})
    with pytest.raises(InputError, match=r"share no gene: a .*c .*Ensembl"):
        build(slides=slides | {"c": make_slide(prefix="ENSG")})
    with pytest.raises(InputError, match="the 28 that"):
        build(n_genes=29)
    twice = slides["c"].copy()
    twice.obs_names = ["x"] * twice.n_obs
    with pytest.raises(InputError, match="slide c has barcode x"):
        build(slides=slides | {"c": twice})
    nowhere = slides["c"].copy()
    del nowhere.obsm["spatial"]
    with pytest.raises(InputError, match="slide c has no spot coordinates"):
        build(slides=slides | {"c": nowhere})
