from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.targets.genes import gene_lengths, gene_report, harmonise, map_genes

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
