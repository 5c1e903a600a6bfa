from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.cohort import cohort_data, target

SPLIT = {"synthetic_p1_s1": "train", "synthetic_p1_s2": "train", "synthetic_p2_s3": "test"}


def test_a_cohort_is_plain_anndata_joined_by_id(study: Study):
    cohort = ad.read_zarr(study.layout.files.path(study.layout.cohort("c")))
    assert set(cohort.layers) == {"counts", "lognorm", "mask", "d_lognorm"}
    assert dict(cohort.obs.groupby("slide", observed=True)["split"].first()) == SPLIT
    for slide in SPLIT:
        raw = study.slide(slide)
        rows = cohort.obs["slide"] == slide
        np.testing.assert_array_equal(
            cohort.layers["counts"][rows], raw[cohort.obs.loc[rows, "barcode"], cohort.var_names].X.toarray()
        )
        totals = raw.X.sum(1).A1 if hasattr(raw.X.sum(1), "A1") else np.asarray(raw.X.sum(1)).ravel()
        expected = np.log1p(cohort.layers["counts"][rows] / totals[:, None] * 1e4)
        np.testing.assert_allclose(cohort.layers["lognorm"][rows], expected, rtol=1e-5)
    np.testing.assert_array_equal(cohort.layers["mask"], cohort.layers["counts"] > 0)


def test_completion_keeps_measured_entries(study: Study):
    mask, before, after = (target(study.layout, "c", layer) for layer in ("mask", "lognorm", "d_lognorm"))
    np.testing.assert_array_equal(after[mask], before[mask])
    assert (after[~mask] > 0).mean() > 0.5


def test_making_it_again(copy: Callable[[], Study]):
    study = copy()
    assert study.cohort("c", n_genes=12)["status"] == "unchanged"
    assert "d_lognorm" in study.cohort_data("c").layers
    with pytest.raises(InputError, match="other settings"):
        study.cohort("c", n_genes=13)


def test_the_split_may_come_from_a_file_or_a_rule(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    table = tmp_path / "split.csv"
    table.write_text("slide,split\nsynthetic_p1_s1,train\nsynthetic_p1_s2,val\nsynthetic_p2_s3,test\n")
    assert study.cohort("from-file", split=table, n_genes=5)["split"]["synthetic_p1_s2"] == "val"
    by = study.cohort("by-slide", split_by="slide", n_genes=5)["split"]
    assert "train" in by.values()
    assert len(set(by.values())) > 1


def test_the_panel_may_be_a_list(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    genes = list(study.cohort_data("c").var_names[[3, 1]])
    (tmp_path / "panel.txt").write_text("\n".join(genes))
    study.cohort("mine", panel=str(tmp_path / "panel.txt"), n_genes=2)
    assert list(study.cohort_data("mine").var_names) == genes


def test_the_panel_never_sees_test_slides(copy: Callable[[], Study]):
    study = copy()
    layout = study.layout
    import zarr

    data = zarr.open_array(layout.files.path(layout.slide("synthetic_p2_s3")) / "X" / "data", mode="r+")
    data[:] = np.random.default_rng(0).permutation(data[:]) * 7
    study.cohort("after", n_genes=12)
    assert list(study.cohort_data("after").var_names) == list(study.cohort_data("c").var_names)


def test_bad_cohorts(study: Study, tmp_path: Path):
    table = tmp_path / "split.csv"
    table.write_text("slide,split\nnope,train\n")
    cases: list[tuple[dict, str]] = [
        ({"split": table}, "nope"),
        ({"split": tmp_path / "absent.csv"}, "no such split file"),
        ({"split": {"synthetic_p1_s1": "train"}}, "says nothing about slide synthetic_p1_s2"),
        ({"split": dict.fromkeys(SPLIT, "test")}, "train"),
        ({"split_by": "moon"}, "not patient, slide, section or block"),
        ({"n_genes": 10_000}, "genes"),
        ({"panel": "moon"}, "moon"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            study.cohort("bad", **options)
    assert study.cohorts == ["c"]
    with pytest.raises(InputError, match="try"):
        study.cohort("a/b")


def test_unknown_names(study: Study):
    with pytest.raises(InputError, match=r"no cohort 'x'.*cohorts: c"):
        study.complete("x")
    with pytest.raises(InputError, match="no layer 'x'"):
        study.complete("c", source="x")
    with pytest.raises(InputError, match="moon"):
        study.complete("c", method="moon")


def test_a_cohort_is_read_as_anndata_reads_it_or_with_the_layers_named(copy: Callable[[], Study]):
    layout = copy().layout
    found, whole = cohort_data(layout, "c"), ad.read_zarr(layout.files.path(layout.cohort("c")))
    pd.testing.assert_frame_equal(found.obs, whole.obs)
    pd.testing.assert_frame_equal(found.var, whole.var)
    for part in ("layers", "obsm", "varm", "obsp", "varp"):
        ours, theirs = getattr(found, part), getattr(whole, part)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
            assert ours[name].dtype == theirs[name].dtype
    assert found.X is whole.X is None
    assert found.uns.keys() == whole.uns.keys()
    shutil.rmtree(layout.files.path(f"{layout.cohort('c')}/layers/lognorm"))  # what isn't named isn't read
    some = cohort_data(layout, "c", layers=["mask", "counts"])
    assert set(some.layers) == {"mask", "counts"}
    np.testing.assert_array_equal(some.layers["mask"], some.layers["counts"] > 0)
    assert not cohort_data(layout, "c", layers=[]).layers
    with pytest.raises(InputError, match="cohort 'c' has no layer 'none'"):
        cohort_data(layout, "c", layers=["none"])
