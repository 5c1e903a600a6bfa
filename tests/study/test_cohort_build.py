"""Cohorts through the store: SpaRED's layers, strict and as published, on synthetic slides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

import spared_fm
from spared_fm.cli import app
from spared_fm.errors import InputError
from spared_fm.store import nodes
from spared_fm.study import cohort_build
from spared_fm.study.api import Study
from spared_fm.study.info import info
from spared_fm.targets import process_dataset
from spared_fm.targets.genes import gene_lengths
from spared_fm.targets.panel import fit_panel
from tests.targets.spared.synthetic import collection

GENES = list(gene_lengths("mouse").index[:60])
PARAMS: dict[str, Any] = {"top_moran_genes": 12}


@pytest.fixture(scope="module")
def raw() -> ad.AnnData:
    return collection(GENES)


def stored(root: Path, slides: Mapping[str, ad.AnnData]) -> Study:
    """A store with these slides; obs['patient'] and obs['split'], where there, are told to it."""
    study = spared_fm.open(root, create=True)
    for name, adata in slides.items():
        labels = {key: str(adata.obs[key].iloc[0]) if key in adata.obs else None for key in ("patient", "split")}
        digests = {"counts_digest": name, "spots_digest": name, "fingerprint": None}
        record = {"slide": name, "n_spots": adata.n_obs, "n_genes": adata.n_vars, "image": None, "mpp": 1.0}
        bare = adata.copy()
        bare.obs = bare.obs[[key for key in ("array_row", "array_col") if key in bare.obs]]
        nodes.write_node(study.layout, study.layout.slide(name), bare, record | labels | digests)
    return study


def by_slide(adata: ad.AnnData) -> dict[str, ad.AnnData]:
    return {str(s): adata[adata.obs["slide_id"] == s].copy() for s in adata.obs["slide_id"].unique()}


def single(seed: int = 3, side: int = 24) -> dict[str, ad.AnnData]:
    """One slide that nothing is known of."""
    adata = collection(GENES, seed=seed, rows=side, cols=side, splits=("train",))
    adata.obs = adata.obs[[]]
    return {"s0": adata}


@pytest.mark.parametrize("mode", ["strict", "spared"])
def test_the_store_gives_what_the_call_on_anndata_gives(raw: ad.AnnData, tmp_path: Path, mode: str) -> None:
    study = stored(tmp_path / "store", by_slide(raw))
    made = study.cohort("c", mode=mode, params=PARAMS)
    ours = study.cohort_data("c")
    theirs = process_dataset(raw, PARAMS | {"organism": "mouse"}, mode=mode)
    assert (made["panel"], made["organism"], made["no_tpm"]) == ("moran", "mouse", None)
    assert list(ours.obs["barcode"]) == list(theirs.obs_names)
    assert list(ours.var_names) == list(theirs.var_names)
    pd.testing.assert_frame_equal(ours.var[list(theirs.var)], theirs.var, check_index_type=False, rtol=1e-12)
    np.testing.assert_array_equal(ours.obs["n_genes_by_counts"], theirs.obs["n_genes_by_counts"])
    assert set(ours.layers) == set(theirs.layers) | {"lognorm"}
    for name, values in theirs.layers.items():
        np.testing.assert_allclose(ours.layers[name], values, rtol=1e-6, atol=1e-5, err_msg=name)
    assert ours.uns["preprocessing"]["fitted_on"] == made["fitted_on"] == theirs.uns["preprocessing"]["fitted_on"]
    # TPM can be taken again from what is kept
    rate = ours.layers["counts"] / ours.var["gene_length"].to_numpy()
    again = rate / (rate.sum(axis=1) + ours.obs["tpm_rest"].to_numpy())[:, None] * 1e6
    np.testing.assert_allclose(ours.layers["tpm"], again, rtol=1e-5)


def leaked(adata: ad.AnnData, where: np.ndarray) -> ad.AnnData:
    """Give the spots ``where`` an effect that reorders genes, hides some and changes every statistic."""
    out = adata.copy()
    dense = out.X.toarray()
    dense[where] *= np.random.default_rng(9).integers(0, 12, out.n_vars)
    out.X = sp.csr_matrix(dense)
    return out


@pytest.mark.parametrize(
    ("divided", "panel"),
    [
        (False, "moran"),
        (True, "moran"),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in [(False, "variance"), (True, "variance"), (False, "hvg")]
        ),
    ],
)
def test_a_leak_planted_in_held_out_spots_changes_nothing_that_is_fitted(
    raw: ad.AnnData, tmp_path: Path, divided: bool, panel: str
) -> None:
    slides = single() if divided else by_slide(raw)
    options: dict[str, Any] = {"params": PARAMS, "panel": panel, "split_by": "block" if divided else None}
    clean = stored(tmp_path / "clean", slides)
    clean.cohort("c", **options)
    before = clean.cohort_data("c")
    train = set(before.obs.loc[before.obs["split"] == "train", "barcode"])
    planted = {name: leaked(slide, ~slide.obs_names.isin(train)) for name, slide in slides.items()}
    dirty = stored(tmp_path / "dirty", planted)
    dirty.cohort("c", **options)
    after = dirty.cohort_data("c")
    pd.testing.assert_frame_equal(before.var, after.var, check_exact=True)
    rows = before.obs_names[before.obs["split"] == "train"]
    assert set(rows) == set(after.obs_names[after.obs["split"] == "train"])
    for name in before.layers:
        np.testing.assert_array_equal(before[rows].layers[name], after[rows].layers[name], err_msg=name)
    pd.testing.assert_frame_equal(
        before.obs.loc[rows].drop(columns="slide"), after.obs.loc[rows].drop(columns="slide"), check_categorical=False
    )
    dirty.cohort("leaky", mode="spared", **options)
    clean.cohort("leaky", mode="spared", **options)
    assert not clean.cohort_data("leaky").var.equals(dirty.cohort_data("leaky").var), "the effect is too weak"


def test_neither_the_order_of_slides_nor_the_chunks_matter(
    raw: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = by_slide(raw)
    slides["s0"] = slides["s0"][:61].copy()  # unlike its neighbour, with which it is one batch
    study = stored(tmp_path / "store", slides)
    study.cohort("c", params=PARAMS | {"combat_key": "patient"})
    one = study.cohort_data("c")
    monkeypatch.setattr(nodes, "MATRIX_ROWS", 7)
    study.cohort("other", params=PARAMS | {"combat_key": "patient"}, slides=["s3", "s1", "s0", "s2"])
    other = study.cohort_data("other")
    assert list(other.obs["slide"].unique()) == ["s3", "s1", "s0", "s2"]
    pd.testing.assert_frame_equal(one.var, other.var, check_exact=True)
    for name in one.layers:
        np.testing.assert_array_equal(one.layers[name], other[one.obs_names].layers[name], err_msg=name)


def test_genes_are_joined_by_id_and_entries_are_the_slides_own(raw: ad.AnnData, tmp_path: Path) -> None:
    slides = by_slide(raw)
    slides["s0"] = slides["s0"][:, ::-1].copy()
    slides["s1"] = slides["s1"][:, 5:].copy()
    slides["s2"].var_names = [f"{gene}.3" for gene in slides["s2"].var_names]
    slides["s0"].obs["array_row"] = np.arange(slides["s0"].n_obs)
    study = stored(tmp_path / "store", slides)
    made = study.cohort("c", panel="variance", n_genes=20)
    cohort = study.cohort_data("c")
    assert cohort.layers["counts"].dtype == np.int32
    assert cohort.layers["lognorm"].dtype == cohort.layers["tpm"].dtype == np.float32
    for name, slide in slides.items():
        rows = cohort[cohort.obs["slide"] == name]
        plain = slide[rows.obs["barcode"].to_numpy()]
        plain.var_names = [gene.split(".")[0] for gene in plain.var_names]
        counts = plain[:, cohort.var_names].X.toarray()
        totals = plain.X.toarray().sum(axis=1)  # over all genes of the slide, shared or not
        np.testing.assert_array_equal(rows.layers["counts"], counts)
        np.testing.assert_array_equal(rows.layers["mask"], counts > 0)
        np.testing.assert_array_equal(rows.obs["total_counts"], totals)
        np.testing.assert_allclose(rows.layers["lognorm"], np.log1p(counts / totals[:, None] * 1e4), rtol=1e-6)
        np.testing.assert_array_equal(rows.obsm["spatial"], plain.obsm["spatial"])
    assert cohort.obs["array_row"].notna().sum() == slides["s0"].n_obs
    assert made["gene_report"]["shared"] == 55
    train = {name: slides[name][:, sorted(GENES[5:])].copy() for name in ("s0", "s1")}
    for name, slide in train.items():
        slide.obs["total_counts"] = slides[name].X.toarray().sum(axis=1)
    expected = fit_panel(train, n_genes=20, panel="variance")
    assert list(cohort.var_names) == expected.genes
    np.testing.assert_array_equal(cohort.var["panel_score"], expected.scores)


def test_completing_what_was_built_completed(raw: ad.AnnData, tmp_path: Path) -> None:
    study = stored(tmp_path / "store", by_slide(raw))
    study.cohort("c", params=PARAMS)
    found = study.complete("c")
    assert (found["layer"], found["source"], found["fit_id"]) == ("d_log1p", "log1p", None)
    study.complete("c", layer="again")
    cohort = study.cohort_data("c")
    np.testing.assert_allclose(cohort.layers["again"], cohort.layers["d_log1p"], rtol=1e-6)


def test_empty_and_tiny_slides(raw: ad.AnnData, tmp_path: Path) -> None:
    slides = by_slide(raw)
    slides["s2"].X = sp.csr_matrix(slides["s2"].shape, dtype=np.float32)
    slides["s3"] = slides["s3"][:1].copy()
    study = stored(tmp_path / "store", slides)
    made = study.cohort("c", params=PARAMS)
    cohort = study.cohort_data("c")
    assert made["dropped_spots"] == slides["s2"].n_obs
    assert any("s2 has no spot left" in warning for warning in made["warnings"])
    assert cohort.obs["slide"].value_counts().to_dict() == {"s0": 90, "s1": 90, "s3": 1}
    alone = cohort[cohort.obs["slide"] == "s3"]
    np.testing.assert_array_equal(alone.layers["d_log1p"], alone.layers["log1p"])

    slides["s1"] = slides["s1"][:1].copy()
    study = stored(tmp_path / "lonely", slides)
    with pytest.raises(InputError, match="batch s1 has one spot"):
        study.cohort("c", params=PARAMS)
    assert study.cohort("c", params=PARAMS | {"combat_key": "None"})["spots"] == 92
    slides = {name: slide.copy() for name, slide in by_slide(raw).items()}
    for slide in slides.values():
        slide.X = sp.csr_matrix(slide.shape, dtype=np.float32)
    with pytest.raises(InputError, match="no spot to fit on"):
        stored(tmp_path / "zero", slides).cohort("c", params=PARAMS)


def test_bad_requests_are_named(raw: ad.AnnData, tmp_path: Path) -> None:
    slides = by_slide(raw)
    study = stored(tmp_path / "store", slides)
    (tmp_path / "list.json").write_text("[]")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_genes": 61}, r"panel of 61 genes cannot be had: \d+ are left"),
        ({"split": {"s0": "train", "nowhere": "test"}}, "'nowhere'"),
        ({"mode": "loose"}, "strict"),
        ({"params": {"top_moran_gene": 3}}, "top_moran_genes"),
        ({"params": {"combat_key": "batch"}}, "combat_key 'batch'"),
        ({"params": tmp_path / "none.json"}, "no such file"),
        ({"params": tmp_path / "list.json"}, "JSON object"),
        ({"organism": "human"}, "s0"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            study.cohort("bad", **{"params": PARAMS} | options)
    slides["s3"].X = slides["s3"].X * 0.5
    halves = stored(tmp_path / "halves", slides)
    with pytest.raises(InputError, match="slide s3 has fractional counts"):
        halves.cohort("c", params=PARAMS)
    assert study.cohorts == halves.cohorts == []
    halves.cohort("c", mode="spared", params=PARAMS)
    assert halves.cohort_data("c").layers["counts"].dtype == np.float32


def test_without_gene_lengths_it_says_why_there_is_no_tpm(raw: ad.AnnData, tmp_path: Path) -> None:
    named = raw.copy()
    named.var_names = [f"made-up-{i}" for i in range(named.n_vars)]
    study = stored(tmp_path / "store", by_slide(named))
    made = study.cohort("c", n_genes=10)
    assert (made["panel"], made["layers"]) == ("variance", ["counts", "lognorm", "mask"])
    assert "organism" in made["no_tpm"]
    assert "tpm_rest" not in study.cohort_data("c").obs


def test_an_interrupted_build_leaves_no_cohort(
    raw: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = stored(tmp_path / "store", by_slide(raw))
    whole, calls = cohort_build.cohort_layers, []

    def stops(*given: Any) -> dict[str, np.ndarray]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(cohort_build, "cohort_layers", stops)
    with pytest.raises(KeyboardInterrupt):
        study.cohort("c", params=PARAMS)
    assert study.cohorts == []
    left = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert not [file for file in left if "cohorts" in file.parts and file.name != "zarr.json"]
    assert not [file for file in left if file.relative_to(tmp_path / "store").parts[0] not in ("data.zarr", "runs")]
    assert study.cohort("c", params=PARAMS)["status"] == "added"
    assert study.cohort("c", params=PARAMS)["status"] == "unchanged"
    with pytest.raises(InputError, match="other settings"):
        study.cohort("c", params=PARAMS, mode="spared")


def test_one_slide_is_divided_into_blocks_with_a_buffer(tmp_path: Path) -> None:
    study = stored(tmp_path / "store", single())
    made = study.cohort("c", params=PARAMS)
    assert (made["split_by"], made["split"]) == ("block", {"s0": "train+val+test"})
    assert made["leakage"][0]["kind"] == "same-patient"
    assert not [one for one in made["leakage"] if one["kind"] == "overlapping-patches"]
    cohort = study.cohort_data("c")
    xy, part = cohort.obsm["spatial"], cohort.obs["split"].to_numpy()
    assert cohort.n_obs < 24 * 24
    apart = np.linalg.norm(xy[part == "train"][:, None] - xy[part != "train"][None], axis=2)
    assert apart.min() >= 224
    [row] = info(study.layout)["cohorts"]
    assert (row["split_by"], row["mode"], row["fitted_on"]) == ("block", "strict", made["fitted_on"])
    assert row["split_label"] == made["split_label"]


@pytest.mark.full
def test_a_slide_of_a_hundred_thousand_bins(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slides = {}
    for name, side in (("bins", 320), ("more", 12)):
        row, col = np.divmod(np.arange(side**2), side)
        field = np.exp(np.sin(np.column_stack([row, col]) @ rng.uniform(0, 0.2, (2, 20))))
        counts = rng.poisson(field * 2).astype(np.int32)
        obs = pd.DataFrame({"array_row": row, "array_col": col}, index=[f"s_008um_{i}" for i in range(side**2)])
        obs["split"] = "train" if name == "bins" else "test"
        slides[name] = ad.AnnData(
            sp.csr_matrix(counts),
            obs=obs,
            var=pd.DataFrame(index=GENES[:20]),
            obsm={"spatial": obs[["array_col", "array_row"]].to_numpy() * 8.0},
        )
    study = stored(tmp_path / "store", slides)
    made = study.cohort("c", n_genes=8, params={"cell_min_counts": 2, "gene_max_counts": 1e9})
    assert made["spots"] == sum(slide.n_obs for slide in slides.values())
    assert "d_log1p" in made["layers"]


def test_the_command(raw: ad.AnnData, tmp_path: Path) -> None:
    stored(tmp_path / "store", by_slide(raw))
    # a configuration file of SpaRED's, with keys that do nothing here
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"dataset": "x", "hex_geometry": True}))
    command = ["cohort", "--store", str(tmp_path / "store"), "--name", "c", "--params", str(tmp_path / "params.json")]
    done = CliRunner().invoke(app, [*command, "--mode", "spared", "--organism", "mouse", "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["mode"], made["genes"], made["split_by"]) == ("spared", 12, "given")
    assert "validation and test" in made["fitted_on"]
    assert CliRunner().invoke(app, [*command, "--mode", "spared", "--organism", "mouse"]).exit_code == 0
