from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spared_fm.benchmark.splits import Split
from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.evaluate import join
from tests.study.conftest import ENCODER

KEYS = ["encoder", "head", "target", "split", "slide", "pcc_gene", "pcc_patch", "mse", "mae", "r2_gene", "n_spots"]


def test_rows_have_exactly_the_contracts_keys(study: Study):
    table = study.benchmark("c", encoders=[ENCODER], heads=["gene-mean", "ridge"], targets=["lognorm", "d_lognorm"])
    assert list(table.columns) == KEYS
    assert len(table) == 2 * 2 * 2  # heads × targets × (pooled, the one test slide)
    pooled = table[table["slide"].isna()].set_index(["target", "head"])["pcc_gene"]
    assert pooled["lognorm", "ridge"] > 0.2 > pooled["lognorm", "gene-mean"] == 0
    json.dumps(table.astype(object).where(table.notna(), None).to_dict("records"), allow_nan=False)


def test_embeddings_are_joined_by_id_not_by_row(copy: Callable[[], Study]):
    study = copy()
    straight = join(study.layout, "c", ENCODER)
    # a cohort whose rows were written in another order must still meet its own embeddings
    import anndata as ad

    from spared_fm.store.nodes import write_node

    layout = study.layout
    adata = ad.read_zarr(layout.files.path(layout.cohort("c")))
    order = np.random.default_rng(0).permutation(adata.n_obs)
    record = layout.attributes(layout.cohort("c"))
    assert record is not None
    write_node(layout, layout.cohort("shuffled"), adata[order].copy(), record)
    shuffled = join(layout, "shuffled", ENCODER)
    for slide, rows in shuffled.rows.items():
        np.testing.assert_array_equal(
            shuffled.features[slide], straight.features[slide][order[rows] - straight.rows[slide][0]]
        )


def test_shuffled_pairs_score_about_nothing(study: Study):
    scores = [
        study.benchmark("c", encoders=[ENCODER], heads=["ridge"], shuffle_seed=seed)["pcc_gene"].iloc[0]
        for seed in range(8)
    ]
    assert abs(np.mean(scores)) < 0.2


def test_measured_entries_only(study: Study):
    every = study.benchmark("c", encoders=[ENCODER], heads=["ridge"])
    measured = study.benchmark("c", encoders=[ENCODER], heads=["ridge"], score="measured")
    assert measured["mse"].iloc[0] != every["mse"].iloc[0]


def test_fit_then_predict(copy: Callable[[], Study]):
    study = copy()
    fitted = study.fit("c", encoder=ENCODER)
    test = "synthetic_p2_s3"
    predicted = study.predict("c", fitted["run"], slides=test)[test]
    cohort = study.cohort_data("c")
    assert list(predicted.var_names) == list(cohort.var_names)
    truth = cohort[cohort.obs["slide"] == test]
    aligned = predicted[truth.obs["barcode"].to_numpy()].X
    mse = float(np.mean((aligned - truth.layers["lognorm"]) ** 2))
    assert mse == pytest.approx(fitted["scores"][0]["mse"], rel=1e-5)
    with pytest.raises(InputError, match="exists already"):
        study.fit("c", encoder=ENCODER)


def test_a_head_refuses_another_recipe(copy: Callable[[], Study]):
    study = copy()
    fitted = study.fit("c", encoder=ENCODER)
    layout = study.layout
    node = layout.embedding("synthetic_p1_s1", ENCODER)
    layout.files.remove(node)
    study.encode(ENCODER, slides="synthetic_p1_s1", patch_um=200.0, key=ENCODER, threads=1)
    with pytest.raises(InputError, match="another recipe"):
        study.predict("c", fitted["run"], slides="synthetic_p1_s1")
    with pytest.raises(InputError, match="different recipes"):
        study.benchmark("c", encoders=[ENCODER])


def test_unfinished_embeddings_are_refused(copy: Callable[[], Study]):
    study = copy()
    layout = study.layout
    (layout.files.path(layout.embedding("synthetic_p1_s2", ENCODER)) / "receipts" / "2.json").unlink()
    with pytest.raises(InputError, match=r"synthetic_p1_s2: 1 of \d+ chunks"):
        study.benchmark("c", encoders=[ENCODER])


def test_a_divided_slide_is_fitted_and_scored_by_its_parts(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    slide = "synthetic_p1_s1"
    part = np.array(["train", "test", ""])[np.arange(study.slide(slide).n_obs) % 3]
    divided = Split({slide: part, "synthetic_p2_s3": "test"}, "block", "made for this test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spared_fm.study.cohort.split_slides", lambda *_: divided)
        made = study.cohort("d", n_genes=6, slides=list(divided.parts))
    assert made["split"] == {slide: "train+test", "synthetic_p2_s3": "test"}
    joined = join(study.layout, "d", ENCODER)
    barcodes = study.slide(slide).obs_names
    assert joined.split == {f"{slide}/train": "train", f"{slide}/test": "test", "synthetic_p2_s3": "test"}
    for one in ("train", "test"):
        rows = joined.rows[f"{slide}/{one}"]
        assert list(study.cohort_data("d").obs["barcode"].iloc[rows]) == list(barcodes[part == one])
    table = study.benchmark("d", encoders=[ENCODER], report=tmp_path / "report.html")
    held_out = table[(table["head"] == "ridge") & table["slide"].notna()].set_index("slide")["n_spots"]
    assert held_out.to_dict() == {
        slide: (part == "test").sum(),
        "synthetic_p2_s3": study.slide("synthetic_p2_s3").n_obs,
    }
    assert "made for this test" in (tmp_path / "report.html").read_text()


def test_unknown_names(study: Study):
    for options, message in (
        ({"encoders": ["uni"]}, "uni"),
        ({"encoders": [ENCODER], "heads": ["oracle"]}, "oracle"),
        ({"encoders": [ENCODER], "targets": ["tpm"]}, "no layer 'tpm'"),
        ({"encoders": [ENCODER], "score": "some"}, "some"),
        ({"encoders": [ENCODER], "standardize": "moon"}, "moon"),
    ):
        with pytest.raises(InputError, match=message):
            study.benchmark("c", **options)
    with pytest.raises(InputError, match="not a saved head"):
        study.predict("c", "no-such-run")
