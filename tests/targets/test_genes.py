from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.targets.genes import gene_lengths, gene_report, harmonise, identify, map_genes

TSPAN6, TNMD = "ENSG00000000003", "ENSG00000000005"
HUMAN = gene_lengths("human")


def fates(names: list[str], organism: str = "human") -> dict[str, tuple[str, str]]:
    return {row.name: (row.gene_id, row.fate) for row in map_genes(names, organism).itertuples(index=False)}


def test_lengths_are_of_the_annotations_and_belong_to_the_caller():
    assert len(HUMAN) == 62_666 - 47  # copies on Y of pseudoautosomal genes
    assert len(gene_lengths("mouse")) == 56_847
    assert HUMAN[TSPAN6] == 4066
    assert gene_lengths("mouse")["ENSMUSG00000000001"] == 3262
    assert (HUMAN.index.is_unique, HUMAN.index.is_monotonic_increasing, HUMAN.min() > 0) == (True, True, True)
    copy = gene_lengths("human")
    copy[TSPAN6] = 1
    assert gene_lengths("human")[TSPAN6] == 4066
    with pytest.raises(InputError, match="'rat': give human or mouse"):
        gene_lengths("rat")


def test_ids_symbols_and_versions_meet_in_one_id():
    assert fates(["TSPAN6", f"{TNMD}.12"]) == {"TSPAN6": (TSPAN6, "kept"), f"{TNMD}.12": (TNMD, "kept")}
    assert fates(["ENSG00000182378.15_PAR_Y"])["ENSG00000182378.15_PAR_Y"] == ("ENSG00000182378", "kept")
    assert fates(["CD99"])["CD99"] == ("ENSG00000002586", "kept")  # on X and on Y, one gene
    assert fates(["Gnai3"], "mouse")["Gnai3"] == ("ENSMUSG00000000001", "kept")


def test_what_is_dropped_is_said():
    found = fates(["nonsense", "ENSMUSG00000000001", "Y_RNA", "tspan6", "TNMD", TNMD, f"{TNMD}.3"])
    assert found["nonsense"] == ("", "unmapped")
    assert found["tspan6"] == ("", "unmapped")
    assert found["ENSMUSG00000000001"] == ("", "other organism")
    assert found["Y_RNA"] == ("", "ambiguous")
    # the id is more trusted than the symbol before it, the first id more than the second
    assert found["TNMD"] == (TNMD, "duplicate")
    assert found[TNMD] == (TNMD, "kept")
    assert found[f"{TNMD}.3"] == (TNMD, "duplicate")


def test_an_id_beside_a_symbol_settles_it():
    var = pd.DataFrame({"gene_ids": [f"{TSPAN6}.4", TNMD, "", np.nan]}, index=["Y_RNA", "odd", "TSPAN6", "odder"])
    table = map_genes(var, "human")
    assert table["gene_id"].tolist() == [TSPAN6, TNMD, TSPAN6, ""]
    assert table["source"].tolist() == ["gene_ids", "gene_ids", "symbol", ""]
    assert table["fate"].tolist() == ["kept", "kept", "duplicate", "unmapped"]


def test_harmonise_keeps_values_and_reports():
    names = ["TSPAN6", "nonsense", f"{TNMD}.6", "Y_RNA", "ENSG99999999999"]
    counts = np.arange(10, dtype=np.float32).reshape(2, 5)
    adata = ad.AnnData(counts, obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=names))
    out, report = harmonise(adata, "human")
    assert out.var_names.tolist() == [TSPAN6, TNMD, "ENSG99999999999"]
    assert out.var["gene_symbol"].tolist() == ["TSPAN6", "TNMD", ""]
    np.testing.assert_array_equal(out.X, counts[:, [0, 2, 4]])
    assert adata.var_names.tolist() == names
    assert "gene_symbol" not in adata.var
    assert report == {
        "genes": 5,
        "kept": 3,
        "without_length": 1,
        "sources": {"ensembl": 2, "gene_ids": 0, "symbol": 1},
        "unmapped": ["nonsense"],
        "other_organism": [],
        "ambiguous": ["Y_RNA"],
        "duplicate": [],
    }
    # names that are right already stay as they are, and so does a column of symbols
    out.var["gene_symbol"] = ["mine", "own", "words"]
    again, report = harmonise(out, "human")
    assert again.var.equals(out.var)
    assert report["kept"] == report["genes"] == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["ENSMUSG00000000001", "x"], "are not human genes: give the right organism"),
        (["x", "y"], "none of the 2 genes"),
        ([], "no genes"),
    ],
)
def test_nothing_mapped_is_refused(names: list[str], words: str):
    adata = ad.AnnData(np.ones((1, len(names)), np.float32), var=pd.DataFrame(index=pd.Index(names, dtype=object)))
    with pytest.raises(InputError, match=words):
        harmonise(adata, "human")


@given(st.lists(st.sampled_from(["TSPAN6", TSPAN6, f"{TSPAN6}.9", "TNMD", TNMD, "Y_RNA", "?", "ENSMUSG00000000001"])))
def test_kept_ids_are_unique_and_every_gene_has_one_fate(names: list[str]):
    table = map_genes(names, "human")
    kept = table[table["fate"] == "kept"]["gene_id"]
    assert kept.is_unique
    assert set(kept) == set(table["gene_id"]) - {""}
    report = gene_report(table, "human")
    dropped = sum(len(report[fate]) for fate in ("unmapped", "other_organism", "ambiguous", "duplicate"))
    assert report["kept"] + dropped == report["genes"] == len(names)


def test_real_symbols_map(shared_data: Path):
    with h5py.File(shared_data / "her2st_counts.h5ad") as file:
        names = ad.io.read_elem(file["var"]).index
    report = gene_report(map_genes(names, "human"), "human")
    assert report["kept"] > 0.9 * report["genes"], report
    assert report["without_length"] == 0


def called(names: dict[str, list[str]], organism: str | None = None) -> dict[str, list[str]]:
    return {slide: ids.tolist() for slide, ids in identify(names, organism).ids.items()}


def test_slides_named_in_different_ways_meet_in_one_name():
    naming = identify({"a": ["TSPAN6", "spike-in", "TNMD"], "b": [f"{TNMD}.12", TSPAN6, "spike-in"]})
    assert naming.organism == "human"
    assert naming.ids["a"].tolist() == [TSPAN6, "spike-in", TNMD]
    assert naming.ids["b"].tolist() == [TNMD, TSPAN6, "spike-in"]
    assert naming.symbols == {TSPAN6: "TSPAN6", TNMD: "TNMD"}
    assert naming.find(["TNMD", "spike-in", f"{TSPAN6}.3", TNMD, "unheard"]) == [TNMD, "spike-in", TSPAN6, "unheard"]
    assert naming.report == {
        "mapped": 2,
        "without_length": 0,
        "as_given": 1,
        "ambiguous": 0,
        "shared": 3,
        "dropped_duplicate": 0,
        "dropped_nameless": 0,
        "as_given_examples": ["spike-in"],
        "dropped_examples": [],
    }


def test_one_of_two_rows_of_a_gene_stays_and_the_other_is_reported():
    naming = identify({"a": ["TNMD", TNMD, f"{TNMD}.3", "Y_RNA", "Y_RNA", "", "ENSG99999999999"], "b": [TSPAN6]})
    assert naming.ids["a"].tolist() == ["", TNMD, "", "Y_RNA", "", "", "ENSG99999999999"]
    assert naming.report["dropped_examples"] == [f"a: TNMD ({TNMD})", f"a: {TNMD}.3 ({TNMD})", "a: Y_RNA (Y_RNA)"]
    wanted = {"dropped_duplicate": 3, "dropped_nameless": 1, "ambiguous": 1, "as_given": 1, "shared": 0}
    assert {name: naming.report[name] for name in wanted} == wanted
    assert (naming.report["mapped"], naming.report["without_length"]) == (3, 1)


def test_an_id_beside_the_symbol_names_the_gene_and_a_listed_panel_finds_it():
    var = pd.DataFrame({"gene_ids": [f"{TSPAN6}.4", TNMD]}, index=["withdrawn", "other"])
    naming = identify({"a": var, "b": ["TSPAN6", "TNMD"]})
    assert naming.ids["a"].tolist() == naming.ids["b"].tolist() == [TSPAN6, TNMD]
    assert naming.find(["withdrawn"]) == [TSPAN6]
    assert naming.symbols[TSPAN6] == "TSPAN6"


def test_the_organism_is_guessed():
    assert identify({"a": ["Gnai3", "Cdc45", "H19", "?"]}).organism == "mouse"
    assert identify({"a": ["ENSMUSG00000000001", "ENSMUSG00000000003", TSPAN6, "TNMD"]}).organism == "mouse"
    assert identify({"a": ["x", "y", "TNMD"]}).organism is None
    assert identify({"a": ["x", "y"], "b": ["TNMD"]}).organism == "human"  # and nothing of a is refused
    assert identify({}).organism is None


def test_names_of_neither_organism_stay_as_they_are():
    rat = "ENSRNOG00000000001"
    assert called({"a": [f"{rat}.2", "g1", "g1"], "b": [rat, "g1"]}) == {"a": [rat, "g1", ""], "b": [rat, "g1"]}
    # also beside known genes, so that a panel of measured genes may hold them
    assert called({"a": ["TNMD", f"{rat}.2"]}, "human") == {"a": [TNMD, rat]}


@pytest.mark.parametrize(
    ("names", "organism", "words"),
    [
        ({"a": ["TNMD"], "b": []}, None, "slide b has no genes"),
        ({"a": ["TNMD"], "b": ["Gnai3"]}, None, r"human \(slide a\) and mouse \(slide b\): make a cohort of each"),
        ({"a": ["TNMD"], "b": ["x1", "x2"]}, "human", "slide b: none of the 2 genes"),
        ({"a": [TSPAN6]}, "mouse", "slide a: the genes .* are not mouse genes: give the right organism"),
        ({"a": ["x"]}, "rat", "'rat': give human or mouse"),
    ],
)
def test_slides_that_cannot_be_joined_are_refused(names: dict[str, list[str]], organism: str | None, words: str):
    with pytest.raises(InputError, match=words):
        identify(names, organism)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["TSPAN6", TSPAN6, f"{TSPAN6}.9", "TNMD", "Y_RNA", "?", "!", ""]), min_size=1))
def test_cohort_ids_are_unique_and_no_named_gene_is_lost(names: list[str]):
    ids = identify({"a": [*names, TNMD]}).ids["a"]
    kept = [i for i in ids if i]
    assert len(set(kept)) == len(kept)
    assert set(kept) == {TNMD} | {TSPAN6 if "6" in n or "003" in n else n for n in names if n and n != "TNMD"}


def test_real_sections_are_one_cohort(shared_data: Path):
    with h5py.File(shared_data / "her2st_counts.h5ad") as file:
        symbols = ad.io.read_elem(file["var"]).index
    table = map_genes(symbols, "human")
    ids = table.loc[table["fate"] == "kept", "gene_id"] + ".1"
    naming = identify({"symbols": symbols, "ids": ids})
    assert naming.organism == "human"
    assert naming.report["shared"] == naming.report["mapped"] == len(ids)
    assert naming.report["as_given"] + naming.report["mapped"] == len(symbols) - naming.report["dropped_duplicate"]
