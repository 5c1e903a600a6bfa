"""Folds of a cohort under each protocol, on synthetic slides with counts and made-up embeddings."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from spared_fm.benchmark import hest
from spared_fm.benchmark.runner import evaluate
from spared_fm.errors import InputError
from spared_fm.heads.registry import make
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import read_elem
from spared_fm.study import protocols
from spared_fm.study.api import Study
from spared_fm.study.cohort import cohort_record, target
from spared_fm.study.cohort_split import units
from spared_fm.study.evaluate import Joined
from spared_fm.study.protocols import HEST, Fold, check_head, check_target, folds, uncompleted
from tests.study.test_cohort_build import stored

SPOTS, GENES, DIM = 150, 90, 300
PATIENTS: dict[str, str | None] = {"a1": "A", "a2": "A", "b1": "B/1", "c1": "C"}


def slides(patients: dict[str, str | None], changed: str | None = None) -> dict[str, ad.AnnData]:
    """Slides whose genes are in an order of their own each; of slide ``changed`` every count is another."""
    made = {}
    for i, (slide, patient) in enumerate(patients.items()):
        rng = np.random.default_rng([7, i])
        hidden = rng.normal(size=(SPOTS, 6))
        weights = np.random.default_rng(1).normal(size=(6, GENES)) * np.linspace(0.1, 0.7, GENES)
        counts = rng.poisson(np.exp(hidden @ weights + 0.8))
        if slide == changed:
            counts = rng.permutation(counts[:, ::-1].T).T * 3 + (counts > 2)
        order = rng.permutation(GENES)
        obs = pd.DataFrame({"split": "train" if i else "test"}, index=[f"{slide}-{n}" for n in range(SPOTS)])
        if patient:
            obs["patient"] = patient
        adata = ad.AnnData(sp.csr_matrix(counts[:, order].astype(np.float32)), obs=obs)
        adata.var_names = [f"gene{g:02}" for g in order]
        adata.obsm["spatial"] = np.stack([np.arange(SPOTS) % 15, np.arange(SPOTS) // 15], axis=1) * 100.0
        adata.uns["hidden"] = hidden
        made[slide] = adata
    return made


def joined(study: Study, made: dict[str, ad.AnnData]) -> Joined:
    """What ``evaluate.join`` gives, with embeddings made of what is hidden behind the counts."""
    record, obs = cohort_record(study.layout, "c"), read_elem(study.layout, "data.zarr/cohorts/c/obs")
    found = Joined(key="made-up", features={}, rows={}, split={}, patients={}, coords={}, recipe_id="", blocks=(DIM,))
    mix = np.random.default_rng(2).normal(size=(6, DIM))
    for unit, (slide, part, rows) in units(obs, record["split"]).items():
        at = made[slide].obs_names.get_indexer(obs["barcode"].to_numpy()[rows])
        noise = np.random.default_rng(3).normal(size=(SPOTS, DIM))
        found.features[unit] = (made[slide].uns["hidden"] @ mix + noise)[at].astype(np.float32)
        found.rows[unit], found.split[unit] = rows, part
        found.patients[unit] = record["patients"].get(slide) or slide
    return found


def cohort(root: Path, patients: Any = PATIENTS, **options: Any) -> tuple[Layout, Joined]:
    made = slides(patients, options.pop("changed", None))
    study = stored(root, {slide: one[:, :] for slide, one in made.items()})
    study.cohort("c", n_genes=5, panel="variance", **options)
    return study.layout, joined(study, made)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Joined]:
    return cohort(tmp_path_factory.mktemp("protocols") / "store")


def by_name(found: list[Fold]) -> dict[str, Fold]:
    assert len({fold.name for fold in found}) == len(found)
    return {fold.name: fold for fold in found}


@pytest.mark.parametrize("protocol", HEST)
def test_folds_never_share_a_patient(usual: tuple[Layout, Joined], protocol: str):
    layout, one = usual
    found = folds(layout, "c", one, "hest", protocol)
    assert [fold.name for fold in found] == ["patient A", "patient B%2F1", "patient C"]
    for fold in found:
        sides = {
            part: {PATIENTS[unit] for unit in fold.split if fold.split[unit] == part} for part in ("train", "test")
        }
        assert all(sides.values())
        assert not sides["train"] & sides["test"]
        assert sides["train"] | sides["test"] == set(PATIENTS.values())
        assert (fold.mask, fold.raw) == (None, None)
    assert all(("leak" in fold.label) == (protocol == "hest_exact") for fold in found)


@pytest.mark.parametrize("protocol", HEST)
def test_the_target_is_log1p_of_the_slides_own_raw_counts(usual: tuple[Layout, Joined], protocol: str):
    layout, one = usual
    made = slides(PATIENTS)
    obs = read_elem(layout, "data.zarr/cohorts/c/obs")
    for fold in folds(layout, "c", one, "hest", protocol):
        assert len(fold.genes) == len(set(fold.genes)) == 50
        for unit, values in fold.truth.items():
            own = made[unit][obs["barcode"].to_numpy()[one.rows[unit]], fold.genes]
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, np.log1p(own.X.toarray()), rtol=1e-6)


def test_genes_of_the_corrected_protocol_know_nothing_of_the_slide_held_out(
    usual: tuple[Layout, Joined], tmp_path: Path
):
    changed = cohort(tmp_path / "store", changed="c1")
    before, after = ({p: by_name(folds(layout, "c", one, "hest", p)) for p in HEST} for layout, one in (usual, changed))
    held_out = "patient C"
    assert before["hest_corrected"][held_out].genes == after["hest_corrected"][held_out].genes
    for unit in ("a1", "a2", "b1"):
        np.testing.assert_array_equal(
            before["hest_corrected"][held_out].truth[unit], after["hest_corrected"][held_out].truth[unit]
        )
    assert before["hest_corrected"]["patient A"].genes != after["hest_corrected"]["patient A"].genes
    assert before["hest_exact"][held_out].genes != after["hest_exact"][held_out].genes  # the published leak
    exact = before["hest_exact"].values()
    assert len({tuple(fold.genes) for fold in exact}) == 1
    assert len({tuple(fold.genes) for fold in before["hest_corrected"].values()}) > 1


def test_scores_are_those_of_the_published_steps_in_scikit_learn(usual: tuple[Layout, Joined]):
    layout, one = usual
    runs, expected = [], []
    for fold in folds(layout, "c", one, "hest", "hest_exact"):
        head = make("hest-exact")
        found = evaluate(
            head, encoder="", target="hest", X=one.features, Y=fold.truth, split=fold.split, patients=one.patients
        )
        runs.append((fold.truth, found.predictions))
        (x, y), (x_test, y_test) = (
            [
                np.concatenate([of[unit] for unit in fold.split if fold.split[unit] == part])
                for of in (one.features, fold.truth)
            ]
            for part in ("train", "test")
        )
        scale = StandardScaler().fit(x.astype(np.float64))
        pca = PCA(256, random_state=1).fit(scale.transform(x.astype(np.float64)))
        ridge = Ridge(100 / (256 * 50), solver="lsqr", fit_intercept=False, max_iter=1000, random_state=1)
        ridge.fit(pca.transform(scale.transform(x.astype(np.float64))), y)
        guess = ridge.predict(pca.transform(scale.transform(x_test.astype(np.float64))))
        expected.append([np.corrcoef(y_test[:, g], guess[:, g])[0, 1] for g in range(50)])
    scores = hest.score_folds(runs, as_published=True)
    assert len(expected) == 3
    np.testing.assert_allclose(scores.folds, np.mean(expected, axis=1), atol=1e-4)
    # lsqr stops by a loose tolerance, and rounding can move that by a step for a single gene
    np.testing.assert_allclose(scores.genes, expected, atol=2e-3)
    assert scores.pcc_gene == pytest.approx(np.mean(expected), abs=1e-4)
    assert 0.2 < scores.pcc_gene < 0.95


def known_as(monkeypatch: pytest.MonkeyPatch, one: Joined, patients: dict[str, str | None]) -> Joined:
    """The same cohort, had ingest been told these patients."""
    whole = protocols.cohort_record
    monkeypatch.setattr(protocols, "cohort_record", lambda *which: whole(*which) | {"patients": patients})
    return dataclasses.replace(one, patients={slide: patient or slide for slide, patient in patients.items()})


@pytest.mark.parametrize(
    ("patients", "names", "label"),
    [
        ([None] * 4, ["slide a1", "slide a2", "slide b1", "slide c1"], "folds by slide, patients unknown"),
        (["P"] * 4, ["slide a1", "slide a2", "slide b1", "slide c1"], "folds by slide, one patient only"),
        (
            ["P", "P", "P", None],
            ["patient P", "patient c1"],
            "1 of 4 slides of unknown patients, each taken for a patient of its own",
        ),
    ],
)
def test_slides_take_the_place_of_patients_and_it_is_said(
    usual: tuple[Layout, Joined], monkeypatch: pytest.MonkeyPatch, patients: Any, names: list[str], label: str
):
    layout, one = usual
    one = known_as(monkeypatch, one, dict(zip(PATIENTS, patients, strict=True)))
    corrected = folds(layout, "c", one, "hest", "hest_corrected")
    assert [fold.name for fold in corrected] == names
    assert {fold.label for fold in corrected} == {label}
    exact = folds(layout, "c", one, "hest", "hest_exact")
    assert {fold.label for fold in exact} == {f"{protocols.LEAK}; {label}"}


def test_many_patients_are_dealt_into_fewer_folds(usual: tuple[Layout, Joined], monkeypatch: pytest.MonkeyPatch):
    layout, one = usual
    monkeypatch.setattr(hest, "leave_out", functools.partial(hest.leave_out, most=2))
    found = folds(layout, "c", one, "hest", "hest_corrected")
    tested = {fold.name: [unit for unit in fold.split if fold.split[unit] == "test"] for fold in found}
    assert tested == {"patients 1 of 2": ["a1", "a2", "c1"], "patient B%2F1": ["b1"]}


def test_a_divided_slide_stays_on_one_side_and_one_without_spots_out(usual: tuple[Layout, Joined]):
    layout, one = usual
    rows = dict(one.rows) | {"a2": one.rows["a2"][:0]}
    whole = rows.pop("a1")
    rows |= {"a1/train": whole[::2], "a1/test": whole[1::2]}
    divided = dataclasses.replace(one, rows=rows, patients={unit: PATIENTS[unit.split("/")[0]] for unit in rows})
    for fold, before in zip(*(folds(layout, "c", j, "hest", "hest_exact") for j in (divided, one)), strict=True):
        assert fold.split.keys() == fold.truth.keys() == {"a1/train", "a1/test", "b1", "c1"}
        assert fold.split["a1/train"] == fold.split["a1/test"] == before.split["a1"]
        obs = read_elem(layout, "data.zarr/cohorts/c/obs")["barcode"].to_numpy()
        own = slides(PATIENTS)["a1"][obs[whole[1::2]], fold.genes]
        np.testing.assert_allclose(fold.truth["a1/test"], np.log1p(own.X.toarray()), rtol=1e-6)


def test_what_cannot_be_had_is_said_in_one_line(usual: tuple[Layout, Joined], monkeypatch: pytest.MonkeyPatch):
    layout, one = usual
    with pytest.raises(InputError, match="protocol 'hest' is not strict or spared or"):
        folds(layout, "c", one, "hest", "hest")
    with pytest.raises(InputError, match="hest_exact takes target 'hest' only, not 'lognorm'"):
        folds(layout, "c", one, "lognorm", "hest_exact")
    with pytest.raises(InputError, match="needs protocol hest_exact or hest_corrected, not strict"):
        check_target("strict", "hest")
    alone = dataclasses.replace(one, rows={"a1": one.rows["a1"]})
    with pytest.raises(InputError, match="cohort 'c' has one slide"):
        folds(layout, "c", alone, "hest", "hest_corrected")
    monkeypatch.setattr(hest, "pick_genes", functools.partial(hest.pick_genes, n_genes=91))
    with pytest.raises(InputError, match=r"takes 91 genes, but only \d\d of 90 vary"):
        folds(layout, "c", one, "hest", "hest_corrected")


@pytest.mark.parametrize(
    ("protocol", "head", "message"),
    [
        ("hest_exact", "ridge", "takes head hest-exact only, not 'ridge'"),
        ("hest_exact", "hest-corrected", "takes head hest-exact only"),
        ("hest_corrected", "hest-exact", "use hest-corrected, or protocol hest_exact"),
        ("hest_corrected", "slide-mean", r"fair heads only, not 'slide-mean' \(oracle\)"),
        ("hest_corrected", "coordinates", "fair heads only"),
        ("strict", "rigde", "unknown head"),
    ],
)
def test_heads_a_protocol_does_not_take(protocol: str, head: str, message: str):
    with pytest.raises(InputError, match=message):
        check_head(protocol, head)
    for fine in (("hest_exact", "hest-exact"), ("hest_corrected", "hest-corrected"), ("hest_corrected", "knn")):
        check_head(*fine)
    for name in ("slide-mean", "hest-exact", "coordinates"):
        check_head("strict", name)


def test_strict_is_the_cohorts_own_split_and_panel(study: Study):
    from spared_fm.study.evaluate import join

    one = join(study.layout, "c", "stain-bank")
    [plain] = folds(study.layout, "c", one, "lognorm", "strict")
    [completed] = folds(study.layout, "c", one, "d_lognorm", "spared")
    assert (plain.name, plain.label, plain.raw, plain.raw_layer) == ("", "", None, None)
    assert plain.split == one.split
    assert completed.raw_layer == "lognorm"
    assert completed.raw is not None
    assert completed.mask is not None
    adata = study.cohort_data("c")
    assert completed.genes == list(adata.var_names)
    for unit, rows in one.rows.items():
        np.testing.assert_array_equal(completed.truth[unit], target(study.layout, "c", "d_lognorm")[rows])
        np.testing.assert_array_equal(completed.raw[unit], plain.truth[unit])
        np.testing.assert_array_equal(completed.mask[unit], adata.layers["mask"][rows])
    with pytest.raises(InputError, match="no layer 'tpm9'"):
        folds(study.layout, "c", one, "tpm9", "strict")


def test_a_completed_layer_is_traced_to_what_was_measured():
    built = {
        name: {"method": "SpaRED's preprocessing"}
        for name in ("log1p", "d_log1p", "c_log1p", "c_d_log1p", "noisy_c_d_log1p", "d_deltas")
    }
    layers = built | {
        "c_t_log1p": {"source": "c_log1p"},
        "c_t_spread": {"source": "c_log1p", "of": "c_t_log1p"},
        "again": {"source": "d_log1p"},
        "lost": {"source": "gone"},
    }
    expected = {"d_log1p": "log1p", "c_d_log1p": "noisy_c_d_log1p", "c_t_log1p": "c_log1p", "again": "log1p"}
    assert {name: uncompleted(layers, name) for name in layers} == dict.fromkeys(layers) | expected
