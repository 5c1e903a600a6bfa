from __future__ import annotations

import re
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.study.datasets import check, datasets
from spared_fm.targets.datasets import dataset
from spared_fm.targets.genes import gene_lengths

VKO = dataset("VKO")


def as_published(*, raw: bool = False, kind: type = np.asarray) -> ad.AnnData:
    """VKO as the table has it: spots, genes, slides and share of missing entries, with made-up values."""
    n, g = (VKO.spots + 5, 400) if raw else (VKO.spots, VKO.genes)
    slide = np.array(VKO.slides)[np.arange(n) % len(VKO.slides)]
    obs = pd.DataFrame(
        {"slide_id": slide, "patient": [s.split("_")[0] for s in slide], "split": [VKO.split[s] for s in slide]},
        index=[f"{s}_{i}" for i, s in enumerate(slide)],
    )
    missing = (np.arange(n * g).reshape(n, g) * 7) % 100 < (VKO.missing_raw if raw else VKO.missing)
    counts = (~missing).astype(np.float32)
    var = pd.DataFrame(index=gene_lengths("human").index[:g].to_numpy())
    adata = ad.AnnData(kind(counts), obs=obs, var=var)
    if not raw:
        adata.layers["mask"] = kind(~missing)
    return adata


def verdicts(rows: list[dict]) -> dict[str, bool]:
    return {row["field"]: row["ok"] for row in rows}


def test_all_are_listed_and_chosen():
    rows = datasets()
    assert len(rows) == 26
    (one,) = datasets("mmbr")
    assert one["name"] == "mirzazadeh_mouse_brain"
    assert one["slides"] == len(one["train"] + one["val"] + one["test"]) == 8
    assert sorted(one["same_slides"]) == ["mirzazadeh_mouse_brain_p1", "mirzazadeh_mouse_brain_p2"]
    assert {row["name"] for row in datasets("*ORGANOID")} == {"villacampa_kidney_organoid", "villacampa_lung_organoid"}
    assert datasets("VKO")[0]["scored_on"] == "val"
    with pytest.raises(InputError, match=r"none of the 26 data sets fits 'nothing\*'"):
        datasets("nothing*")


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("raw", [False, True])
def test_the_published_figures_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bool, kind: type):
    adata = as_published(raw=raw, kind=kind)
    monkeypatch.setattr("spared_fm.study.datasets.BLOCK_ROWS", 300)  # several blocks, the last one short
    path = tmp_path / "adata.h5ad"
    adata.write_h5ad(path)
    rows = check(path, "villacampa_kidney_organoid")
    assert rows == check(adata, "VKO")
    assert all(verdicts(rows).values()), rows
    assert ("genes" in verdicts(rows)) == (not raw)
    share = (adata.X if raw else adata.layers["mask"]).mean()
    (missing,) = (row["found"] for row in rows if row["field"].startswith("missing"))
    assert missing == pytest.approx(100 * (1 - share), abs=0.006)


def test_each_difference_is_told():
    good = as_published()

    def failed(adata: ad.AnnData) -> set[str]:
        return {field for field, ok in verdicts(check(adata, "VKO")).items() if not ok}

    assert failed(good) == set()
    assert failed(good[1:].copy()) == {"spots"}
    assert failed(good[:, 1:].copy()) == {"genes"}
    moved = good.copy()
    moved.obs["split"] = moved.obs["split"].replace("val", "test")
    assert failed(moved) == {"val slides", "test slides"}
    filled = good.copy()
    filled.layers["mask"][:, : VKO.genes // 2] = True
    assert "missing %" in failed(filled)
    filled.layers["mask"][: VKO.spots // 2] = True
    assert "incomplete spots %" in failed(filled)
    people = good.copy()
    people.obs["patient"] = people.obs["slide_id"]
    assert failed(people) == {"patients"}
    del people.obs["patient"]
    assert failed(people) == {"patients"}
    mice = good.copy()
    mice.var_names = gene_lengths("mouse").index[: VKO.genes].to_numpy()
    assert failed(mice) == {"organism"}
    few = as_published(raw=True)[: VKO.spots - 1].copy()
    assert failed(few) == {"spots"}


def test_patches_are_not_read(tmp_path: Path):
    path = tmp_path / "adata.h5ad"
    adata = as_published()
    adata.obsm["patches_scale_1.0"] = np.zeros((adata.n_obs, 12), np.uint8)
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:  # an element no reader knows
        file["obsm/patches_scale_1.0"].attrs["encoding-type"] = "unreadable"
    assert all(verdicts(check(path, "VKO")).values())


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "broken.h5ad"
    path.write_bytes(b"not hdf5")
    with pytest.raises(InputError, match=r"broken\.h5ad: not a readable \.h5ad"):
        check(path, "VKO")
    with pytest.raises(InputError, match=r"none\.h5ad: not a readable"):
        check(tmp_path / "none.h5ad", "VKO")
    plain = as_published()
    del plain.obs["split"]
    plain.write_h5ad(path)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: obs has no 'split'"):
        check(path, "VKO")
    with pytest.raises(InputError, match="holds no entries"):
        check(as_published()[:0].copy(), "VKO")
    with pytest.raises(InputError, match="no SpaRED data set is called"):
        check(plain, "zzz")
