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
# # A first store
#
# Encode every patch once, keep the embedding beside the expression of the same spot, then fit, benchmark and search from the
# store without touching a pixel again. All data here is **synthetic**: no figure says anything about real tissue.
#
# It is a plain script too (`python notebooks/01_first_store.py`) and takes under a minute on two cores.

# %%
import tempfile
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

import spared_fm
from spared_fm.slides.synthetic import generate_study

folder = Path(tempfile.mkdtemp(prefix="spared-fm-"))
print(folder)

# %% [markdown]
# ## Slides in
#
# Three slides of two patients, each a folder with `image.jpg` and `counts.h5ad`, like real ones; the second patient is held out.

# %%
generate_study(folder / "slides", n_slides=3, n_patients=2, spots_per_side=12, n_genes=200, seed=1)
table = pd.read_csv(folder / "slides" / "study.csv", dtype=str)
table

# %%
study = spared_fm.open(folder / "store", create=True)
for row in table.itertuples():
    study.ingest(folder / "slides" / row.path, slide=row.slide, patient=row.patient, split=row.split)
study

# %% [markdown]
# ## Embeddings, once
#
# `stain-bank` is the built-in encoder and needs no download; `timm:vit_small_patch16_224` and others go the same way. Patches
# are given in micrometres (112 µm at 0.5 µm per pixel unless asked otherwise), never in magnifications.

# %%
[encoded] = study.encode("stain-bank")
pd.Series({name: encoded[name] for name in ("key", "recipe_id", "dim", "patches", "patches_per_second")})

# %% [markdown]
# Run it again, after a kill for instance: finished chunks are never computed twice.

# %%
[again] = study.encode("stain-bank")
assert again["patches"] == 0
again["chunks_done_before"]

# %%
slide = study.slides[0]
features = study.features(slide, "stain-bank")
features.shape, features.dtype

# %% [markdown]
# ## Targets
#
# A cohort is one gene panel (chosen on training slides only) and one split over slides. Completion fills what dropout lost, as
# a new layer beside the measured one.

# %%
study.cohort("first", n_genes=30, panel="variance")
study.complete("first")
cohort = study.cohort_data("first")
cohort

# %% [markdown]
# ## Benchmark
#
# Fitted on train slides, scored on the others, beside a floor that every head must beat: the gene's training mean. `d_lognorm`
# is the completed layer; scores on completed targets flatter, so the measured layer is always shown as well.

# %%
scores = study.benchmark(
    "first",
    encoders=["stain-bank"],
    heads=["gene-mean", "ridge"],
    targets=["lognorm", "d_lognorm"],
    report=folder / "report.html",
)
pooled = scores[scores["slide"].isna()]  # the other rows are slide by slide
pooled[["encoder", "head", "target", "split", "pcc_gene", "mse"]]

# %% [markdown]
# ## Search
#
# The patches most similar to one spot, on slides of other patients.

# %%
barcode = study.slide(slide).obs_names[40]
hits = study.search("stain-bank", spots=[f"{slide}/{barcode}"], k=5, exclude="patient")
hits

# %% [markdown]
# ## The store is AnnData
#
# Nothing above is needed to read it: each slide is an ordinary AnnData in Zarr, with the embeddings in `obsm`.

# %%
plain = ad.read_zarr(folder / "store" / "data.zarr" / "slides" / slide)
assert np.array_equal(plain.obsm["stain-bank"], features)
plain

# %%
sc.pp.normalize_total(plain, target_sum=1e4)
sc.pp.log1p(plain)
sc.pp.pca(plain, n_comps=10)
gene = cohort.var_names[0]
first = plain.obsm["stain-bank"].astype(np.float32)
first = (first - first.mean(axis=0)) @ np.linalg.svd(first - first.mean(axis=0), full_matrices=False)[2][0]
plain.obs["first component of stain-bank"] = first
sc.pl.embedding(plain, basis="spatial", color=[gene, "first component of stain-bank"], show=False)
plt.savefig(folder / "slide.png", dpi=100)
print(folder / "report.html", folder / "slide.png", sep="\n")
