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
# # 3. Completing with SpaCKLE, and reading the evaluation honestly
#
# A third and more of the entries of a Visium gene panel are zero. Some are true zeros; many are **dropout**: the
# transcript was there and was not caught. Completion fills these entries from the spots around and from the other
# genes. SpaCKLE does it with attention over a spot's 18 nearest neighbours.
#
# How good is it? The usual evaluation hides some measured entries and asks for them back. On the **synthetic** slides
# below the truth is known, so that for once we can see what that evaluation tells, and what it can't.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import spared_fm
from spared_fm.slides.synthetic import generate_study
from spared_fm.targets.completion.spackle import Spackle

folder = Path(tempfile.mkdtemp(prefix="spared-fm-"))
print(folder)

# %%
generate_study(folder / "slides", n_slides=4, n_patients=4, spots_per_side=11, n_genes=200, seed=3)
parts = {"P1": "train", "P2": "train", "P3": "val", "P4": "test"}
study = spared_fm.open(folder / "store", create=True)
for row in pd.read_csv(folder / "slides" / "study.csv", dtype=str).itertuples():
    study.ingest(folder / "slides" / row.path, slide=row.slide, patient=row.patient, split=parts[row.patient])
study.cohort("c", n_genes=24, panel="variance")

# %% [markdown]
# ## Complete
#
# A method is fitted on train slides; the validation slide says when to stop. The result is a **new layer**. The
# measured one stays, and in the new one every measured entry is what it was.
#
# SpaCKLE is trained for 1,000 steps unless told otherwise; with 100 this notebook takes a minute and not ten. Leave the
# first line out on data of your own.

# %%
Spackle.defaults = replace(Spackle.defaults, steps=100)
METHODS = ["adaptive-median", "neighbor-mean", "gene-mean", "low-rank-gaussian", "spackle"]
layers = {method: study.complete("c", method=method, source="lognorm", show=False) for method in METHODS}
cohort = study.cohort_data("c")
measured = np.asarray(cohort.layers["mask"], bool)
spackle = np.asarray(cohort.layers[layers["spackle"]["layer"]])
raw = np.asarray(cohort.layers["lognorm"])
assert (spackle[measured] == raw[measured]).all()
print(f"{1 - measured.mean():.0%} of the entries were not measured")
pd.DataFrame(layers.values())[["method", "layer", "spread", "share_missing_before"]].round(2)

# %% [markdown]
# A gene before and after, on the test slide. The completed map is smoother and easier on the eye. That is no evidence
# that it is right.

# %%
test = (cohort.obs["split"] == "test").to_numpy()
gene = int(np.argmin(np.abs(measured[test].mean(axis=0) - 0.5)))  # measured in about half of the spots
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for axis, (title, values) in zip(axes, {"measured": raw, "completed by SpaCKLE": spackle}.items(), strict=True):
    dots = axis.scatter(*cohort.obsm["spatial"][test].T, c=values[test, gene], s=35, cmap="viridis", vmin=0)
    axis.set(title=f"{cohort.var_names[gene]}, {title}", aspect="equal", xticks=[], yticks=[])
    axis.invert_yaxis()
    figure.colorbar(dots, ax=axis, label="ln(1 + counts per 10⁴)")
figure.savefig(folder / "completed.png", dpi=80)

# %% [markdown]
# ## The usual evaluation
#
# 30 % of the measured entries are hidden in the raw counts, before anything is computed from them. Every method gets
# the same ones.

# %%
found = study.evaluate_completion(
    "c", methods=METHODS, source="lognorm", rules=[0.3], repeats=3, report=folder / "completion.html", show=False
)
summary = pd.DataFrame(found["summary"])
summary = summary[(summary["split"] == "test") & (summary["slide"] == "all")] if "slide" in summary else summary
summary = summary[summary["split"] == "test"].set_index("method")
summary[["mse", "pcc", "zeros_mse"]].sort_values("mse").round(3)

# %% [markdown]
# Three columns, three questions:
#
# - `mse`: *given that the gene was counted here, how much was it?* **Only measured entries can be hidden, so true zeros
#   are never asked for.** A method that always guesses "plenty" does well.
# - `pcc`: within a gene, are the spots in the right order? A method that gives every spot the gene's mean has no order
#   at all.
# - `zeros_mse`: also asks for entries that were zero, scored as zero. But some of those zeros are dropout, for which
#   zero is the wrong answer.
#
# No column answers what you want to know: is the filled-in value of an entry that was *not* measured right?
#
# ## What nobody can see on real data
#
# These slides were drawn from a noise-free truth. So look at exactly the entries that were not measured on the test
# slide, and compare what was filled in with the truth, beside leaving the zero as it is.

# %%
truth = np.full(raw.shape, np.nan)
for name in dict.fromkeys(cohort.obs["slide"]):
    drawn = ad.read_h5ad(folder / "slides" / name / "counts.h5ad")
    rows = (cohort.obs["slide"] == name).to_numpy()
    own = drawn[cohort.obs["barcode"][rows].to_numpy(), cohort.var_names]
    # the truth is per 10⁴ of all genes, as lognorm is
    truth[rows] = own.layers["true_lognorm"]
unseen = ~measured & test[:, None]


def error(values: np.ndarray) -> dict[str, float]:
    """Compare filled entries with the truth: mean squared error, bias, correlation within genes."""
    filled, true = np.where(unseen, values, np.nan), np.where(unseen, truth, np.nan)
    order = [
        np.corrcoef(f[u], t[u])[0, 1]
        for f, t, u in zip(filled.T, true.T, unseen.T, strict=True)
        if u.sum() > 5 and f[u].std() > 1e-3  # a constant has no order
    ]
    wrong = (filled - true)[unseen]
    return {
        "true mse": float((wrong**2).mean()),
        "bias": float(wrong.mean()),
        "true pcc": float(np.mean(order)) if order else np.nan,
    }


real = {method: error(np.asarray(cohort.layers[layers[method]["layer"]])) for method in METHODS}
real["leave it zero"] = error(raw)
together = pd.DataFrame(real).T.join(summary[["mse", "zeros_mse"]].add_suffix(", hidden"))
together.sort_values("true mse").round(3)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for axis, column in zip(axes, ["mse, hidden", "zeros_mse, hidden"], strict=True):
    for method, row in together.dropna(subset=[column]).iterrows():
        axis.scatter(row[column], row["true mse"])
        axis.annotate(method, (row[column], row["true mse"]), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axis.set(xlabel=f"{column}: what the evaluation says", ylabel="error of entries that were not measured")
figure.savefig(folder / "honest.png", dpi=80)

# %% [markdown]
# Filling in beats leaving zeros, by far. But the method that the evaluation puts last, the adaptive median, is among
# the best where it matters, and the order in between changes, too. Entries that were not measured are lower than those
# that were: methods that learnt from measured entries fill in too much, and their `bias` is above zero. Keep three
# rules:
#
# 1. Say what was asked: "hidden *measured* entries".
# 2. Give a cheap method beside the clever one. If `neighbor-mean` is as good, take it.
# 3. Trust the measured entries first; use `mask` to tell them from filled ones.
#
# ## A completed target flatters the head
#
# Fit the same head on both layers. On the completed layer its score is usually higher: the target has become smoother.
# Score both on what was measured.

# %%
study.encode("stain-bank")
target = layers["spackle"]["layer"]
(folder / "m.toml").write_text(
    'name = "targets"\ncohorts = ["c"]\nencoders = ["stain-bank"]\nheads = ["gene-mean", "ridge"]\n'
    f'targets = ["lognorm", "{target}"]\nprotocol = "strict"\nscore = "both"\n'
)
study.run_benchmark(folder / "m.toml")
table = study.show_benchmark("targets")
table = table[(table["over"] == "pooled") & (table["split"] == "test") & (table["head"] == "ridge")]
table[["target", "scored_on", "score", "pcc_gene", "mse"]].round(3)

# %% [markdown]
# Compare rows that are *scored on* the same layer and the same entries. That tells whether fitting on completed
# expression has made the prediction of the measurement any better. Here, on a few synthetic slides, it says nothing
# about yours: run this on them.

# %%
print(folder / "completion.html")
