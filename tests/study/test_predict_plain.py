"""A slide of which there is only an image gets a predicted layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scanpy as sc
from PIL import Image
from typer.testing import CliRunner

from spared_fm.cli import app
from spared_fm.study.api import Study
from tests.slides.test_tissue import MPP, slide


def test_scanpy_opens_what_is_predicted_for_a_plain_image(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    study.encode("colour-stats", threads=1)
    run = study.fit("c", encoder="colour-stats")["run"]
    Image.fromarray(slide()).save(tmp_path / "plain.png")
    study.ingest(tmp_path / "plain.png", mpp=MPP)
    assert study.slide("plain").n_vars == 0  # nothing was measured
    study.encode("colour-stats", slides="plain", threads=1)
    arguments = ["predict", "--cohort", "c", "--run", run, "--slide", "plain", "--out", tmp_path / "out", "--json"]
    found = CliRunner().invoke(app, [str(word) for word in [*arguments, "--store", study.layout.root]])
    assert found.exit_code == 0, found.output
    [row] = json.loads(found.stdout)
    adata = sc.read_h5ad(row["path"])
    assert list(adata.var_names) == list(study.cohort_data("c").var_names)
    assert adata.n_obs == row["spots"] == study.slide("plain").n_obs
    assert adata.X.dtype == np.float32
    assert np.isfinite(adata.X).all()
    assert (adata.X.std(axis=0) > 0).any()
    assert adata.obsm["spatial"].shape == (adata.n_obs, 2)
    assert adata.uns["prediction"]["target"] == "lognorm"
    sc.pp.pca(adata, n_comps=2)  # scanpy computes with it
    assert adata.obsm["X_pca"].shape == (adata.n_obs, 2)
    [library] = adata.uns["spatial"].values()
    # what scanpy's drawings need: the diameter is the grid's spacing of 112 µm
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(112 / MPP)
