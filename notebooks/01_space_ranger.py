# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # 1. From Space Ranger to a fitted head
#
# You have Visium slides: for each the folder `outs` that Space Ranger wrote, and the image it was given. At the end of
# this notebook a small model predicts gene expression from the image alone, and you know how far to trust it.
#
# Without slides of your own, the notebook draws **synthetic** ones. Everything runs the same on them, and no figure
# says anything about real tissue.
#
# It is a plain script too: `python notebooks/01_space_ranger.py`.

# %%
import json
import tempfile
from pathlib import Path

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

import spared_fm
from spared_fm.slides.synthetic import generate_study

folder = Path(tempfile.mkdtemp(prefix="spared-fm-"))
print(folder)

# %% [markdown]
# ## Slides
#
# A list of slides says whose each one is and what it is for. **Train** slides are fitted on, the **test** slide is only
# predicted. Keep all slides of a patient on one side: two sections of one patient resemble each other more than two
# patients do.
#
# With slides of your own, write this list yourself and leave out the two cells that follow it.

# %%
slides = {
    # name: (folder of Space Ranger, patient, what for)
    "sample1": (folder / "sample1" / "outs", "P1", "train"),
    "sample2": (folder / "sample2" / "outs", "P1", "train"),
    "sample3": (folder / "sample3" / "outs", "P2", "test"),
}

# %%
generate_study(folder / "drawn", n_slides=3, n_patients=2, spots_per_side=11, n_genes=200, seed=1)


def write_outs(outs: Path, slide: ad.AnnData, image: Path) -> None:
    """Write a synthetic slide the way Space Ranger 2 leaves a real one."""
    (outs / "spatial").mkdir(parents=True)
    counts, [visium] = slide.X.tocsr(), slide.uns["spatial"].values()
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(slide.obs_names, "S")
        matrix["data"], matrix["indices"], matrix["indptr"] = counts.data, counts.indices, counts.indptr
        matrix["shape"] = np.array([slide.n_vars, slide.n_obs], np.int32)
        names = np.array(slide.var_names, "S")
        features = {"id": names, "name": names, "feature_type": np.full(slide.n_vars, b"Gene Expression")}
        for column, values in features.items():
            matrix[f"features/{column}"] = values
    xy = slide.obsm["spatial"].round().astype(int)
    places = slide.obs[["in_tissue", "array_row", "array_col"]].assign(
        pxl_row_in_fullres=xy[:, 1], pxl_col_in_fullres=xy[:, 0]
    )
    places.to_csv(outs / "spatial" / "tissue_positions.csv", index_label="barcode")
    factors = {name: float(value) for name, value in visium["scalefactors"].items()}
    factors |= {"tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 1.0}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.open(image).save(outs / "spatial" / "tissue_hires_image.png")


# %%
for (outs, _, _), drawn in zip(slides.values(), sorted((folder / "drawn").glob("synthetic_*")), strict=True):
    write_outs(outs, ad.read_h5ad(drawn / "counts.h5ad"), drawn / "image.jpg")

# %% [markdown]
# ## Into a store
#
# `ingest` reads counts and spots and finds the size of a pixel in micrometres (`mpp`). Give the full-resolution image
# with `image=`, where you have it: the one in `spatial/` is too coarse for most encoders, and you are warned when it
# is. Here the drawn image is the full one.

# %%
study = spared_fm.open(folder / "store", create=True)
rows = []
for name, (outs, patient, split) in slides.items():
    rows += study.ingest(outs, slide=name, patient=patient, split=split)
pd.DataFrame(rows)[["slide", "status", "spots", "genes", "mpp", "mpp_source", "warnings"]]

# %% [markdown]
# Look before you compute: do the spots lie on the tissue?

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for axis, name in zip(axes, study.slides, strict=True):
    slide = study.slide(name)
    [visium] = slide.uns["spatial"].values()
    [factor] = [value for key, value in visium["scalefactors"].items() if key == "tissue_hires_scalef"]
    axis.imshow(visium["images"]["hires"])
    total = np.asarray(slide.X.sum(axis=1)).ravel()
    drawn = axis.scatter(*(slide.obsm["spatial"].T * factor), c=total, s=12, cmap="viridis")
    axis.set(title=name, xticks=[], yticks=[])
figure.colorbar(drawn, ax=axes, label="counts per spot")
figure.savefig(folder / "spots.png", dpi=80)

# %% [markdown]
# ## Encode every patch once
#
# An encoder turns the patch of tissue around each spot into a vector. `stain-bank` is built in and needs no download;
# for foundation models see `spared-fm encoders`. A patch is given in micrometres (112 µm unless asked otherwise), so
# slides scanned at different scales are comparable.
#
# Run it again after a kill: finished chunks are never computed twice.

# %%
[encoded] = study.encode("stain-bank")
[again] = study.encode("stain-bank")
assert again["patches"] == 0
pd.Series({name: encoded[name] for name in ("key", "recipe_id", "dim", "patches")})

# %% [markdown]
# Do the vectors see structure? Their first three principal components as red, green and blue:

# %%
vectors = {name: study.features(name, "stain-bank").astype(np.float32) for name in study.slides}
every = np.concatenate(list(vectors.values()))
mean, spread = every.mean(axis=0), every.std(axis=0) + 1e-6
axes_of = np.linalg.svd((every - mean) / spread, full_matrices=False)[2][:3]
low, high = np.percentile((every - mean) / spread @ axes_of.T, (2, 98), axis=0)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for axis, name in zip(axes, study.slides, strict=True):
    colours = np.clip(((vectors[name] - mean) / spread @ axes_of.T - low) / (high - low), 0, 1)
    axis.scatter(*study.slide(name).obsm["spatial"].T, c=colours, s=60)
    axis.set(title=name, aspect="equal", xticks=[], yticks=[])
    axis.invert_yaxis()
figure.savefig(folder / "components.png", dpi=80)

# %% [markdown]
# ## What to predict
#
# A **cohort** is one list of genes and one split. The 30 genes that vary most are chosen, on the train slides only: a
# choice that saw the test slide would flatter the score. `lognorm` is ln(1 + counts per 10⁴).

# %%
study.cohort("first", n_genes=30, panel="variance")
cohort = study.cohort_data("first")
cohort

# %% [markdown]
# ## Fit, and compare with floors
#
# The **head** `ridge` is linear regression with a penalty, chosen on the train slides. Never look at a score alone.
# `gene-mean` predicts each gene's mean and knows nothing of the image. `--shuffle` (here `shuffle_seed`) pairs spots
# and vectors at random: what is left is chance.

# %%
scores = study.benchmark("first", encoders=["stain-bank"], heads=["gene-mean", "ridge"], report=folder / "report.html")
shuffled = study.benchmark("first", encoders=["stain-bank"], heads=["ridge"], shuffle_seed=0)
table = pd.concat([scores, shuffled.assign(head="ridge, shuffled")])
table = table[table["slide"].isna()][["head", "split", "pcc_gene", "mse", "n_spots"]]
table

# %% [markdown]
# `pcc_gene` is the correlation of measured and predicted expression over the spots, averaged over genes: 1 is perfect,
# 0 is chance. `gene-mean` has none, since a constant correlates with nothing.
#
# ## Keep the head and use it
#
# A saved head predicts any slide that has the same embeddings, measured or not. The result is an AnnData.

# %%
fitted = study.fit("first", encoder="stain-bank", head="ridge")
predicted = study.predict("first", fitted["run"], slides="sample3")["sample3"]
measured = cohort[cohort.obs["slide"] == "sample3"]
measured.obs_names = measured.obs["barcode"].astype(str)
measured = measured[predicted.obs_names]
truth = np.asarray(measured.layers["lognorm"])
correlation = pd.Series(
    [np.corrcoef(t, p)[0, 1] for t, p in zip(truth.T, predicted.X.T, strict=True)], cohort.var_names
)
best, middle = correlation.idxmax(), correlation.sort_values().index[len(correlation) // 2]

# %%
figure, axes = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
for row, (said, gene) in zip(axes, [("best", best), ("median", middle)], strict=True):
    column = list(cohort.var_names).index(gene)
    for axis, title, values in zip(row, ["measured", "predicted"], [truth, predicted.X], strict=True):
        dots = axis.scatter(*predicted.obsm["spatial"].T, c=values[:, column], s=45, cmap="viridis")
        axis.set(title=f"{gene} ({said} gene),\n{title}", aspect="equal", xticks=[], yticks=[])
        axis.invert_yaxis()
        figure.colorbar(dots, ax=axis, label="ln(1 + counts per 10⁴)")
figure.savefig(folder / "genes.png", dpi=80)
print(correlation.describe().round(2).to_string())

# %% [markdown]
# The prediction is smoother than the measurement: it can't know the noise of single counts. Some genes leave no trace
# in the image, and no model finds them there.
#
# ## The store is plain AnnData
#
# Nothing of the above is needed to read it: scanpy and squidpy open a slide as it is.

# %%
plain = ad.read_zarr(folder / "store" / "data.zarr" / "slides" / "sample1")
assert np.array_equal(plain.obsm["stain-bank"], study.features("sample1", "stain-bank"))
plain
