"""What the code blocks of the documentation find around them: synthetic Space Ranger outputs, and a store ``S`` of them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from PIL import Image

import spared_fm
from spared_fm.slides.synthetic import generate_study

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = {"sample1": ("P1", "train"), "sample2": ("P2", "test"), "sample3": ("P3", "val")}
"""Space Ranger sample → patient, split."""
FIRST_BARCODE = "ACGCCTGACACGCGCT-1"
"""The README searches for this spot."""
LENGTHS = REPOSITORY / "spared_fm" / "targets" / "data" / "gene_lengths_human.csv.gz"


def make(folder: Path) -> None:
    """Fill a folder with all that a page's blocks may name.

    ``sample1/outs`` … ``sample3/outs`` and ``slides.csv``, which lists them; ``S``, a store of the three, encoded with
    ``stain-bank``, with a cohort ``C``; links to the repository's ``pipelines``, ``benchmarks`` and ``notebooks``. All data is
    synthetic; genes have human names, so that there are lengths for them.
    """
    study = folder / "synthetic"
    paths = generate_study(study, n_slides=3, n_patients=3, seed=3, n_genes=300, spots_per_side=8)
    with gzip.open(LENGTHS, "rt") as file:
        table = pd.read_csv(file, keep_default_na=False)
    known = table[table["symbol"] != ""].drop_duplicates("symbol").head(300)
    for path, sample in zip(paths, SAMPLES, strict=True):
        write_outs(folder / sample / "outs", ad.read_h5ad(path / "counts.h5ad"), path / "image.jpg", known)
    shutil.rmtree(study)
    rows = [f"{name}/outs,{name},{patient},{split}" for name, (patient, split) in SAMPLES.items()]
    (folder / "slides.csv").write_text("\n".join(["path,slide,patient,split", *rows, ""]))
    for name in ("pipelines", "benchmarks", "notebooks"):
        (folder / name).symlink_to(REPOSITORY / name)
    store = spared_fm.open(folder / "S", create=True)
    for name, (patient, split) in SAMPLES.items():
        store.ingest(folder / name / "outs", patient=patient, split=split)
    store.encode("stain-bank")
    store.cohort("C", n_genes=50, panel="variance")


def write_outs(outs: Path, slide: ad.AnnData, image: Path, genes: pd.DataFrame) -> None:
    """Write a slide as Space Ranger 2 leaves it, with its whole image as the ``hires`` one."""
    spatial = outs / "spatial"
    spatial.mkdir(parents=True)
    names = barcodes(slide.n_obs)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = slide.X.tocsr()  # spots × genes in CSR is genes × spots in CSC, which is how 10x keeps it
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names, "S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array([slide.n_vars, slide.n_obs], np.int32)
        features = group.create_group("features")
        features["id"] = np.array(genes["gene_id"].tolist(), "S")
        features["name"] = np.array(genes["symbol"].tolist(), "S")
        features["feature_type"] = np.array(["Gene Expression"] * slide.n_vars, "S")
        features["genome"] = np.array(["GRCh38"] * slide.n_vars, "S")
    xy = slide.obsm["spatial"].round().astype(int)
    places = {"barcode": names, "in_tissue": 1, "array_row": slide.obs["array_row"].to_numpy()}
    places |= {
        "array_col": slide.obs["array_col"].to_numpy(),
        "pxl_row_in_fullres": xy[:, 1],
        "pxl_col_in_fullres": xy[:, 0],
    }
    pd.DataFrame(places).to_csv(spatial / "tissue_positions.csv", index=False)
    [visium] = slide.uns["spatial"].values()
    diameter = float(visium["scalefactors"]["spot_diameter_fullres"])
    scales = {"spot_diameter_fullres": diameter, "tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 0.25}
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales | {"fiducial_diameter_fullres": 1.6 * diameter}))
    with Image.open(image) as picture:
        picture.save(spatial / "tissue_hires_image.png")
        picture.resize((picture.width // 4, picture.height // 4)).save(spatial / "tissue_lowres_image.png")


def barcodes(n: int) -> list[str]:
    """Give n different barcodes, the first of them ``FIRST_BARCODE``."""
    drawn = np.random.default_rng(0).choice(list("ACGT"), (2 * n, 16))
    return list(dict.fromkeys([FIRST_BARCODE, *("".join(letters) + "-1" for letters in drawn)]))[:n]
