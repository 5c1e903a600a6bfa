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
# # 2. Choosing an encoder and a head
#
# Which encoder, which head? The answer depends on tissue, genes and how many patients there are, so ask your own data.
# Here that is done in the way that doesn't fool you: everything is declared in one file before anything is computed,
# the choice is made on **validation** slides, and the test slide is looked at once.
#
# The slides are **synthetic**; only the way of working carries over.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import spared_fm
from spared_fm.slides.synthetic import generate_study

folder = Path(tempfile.mkdtemp(prefix="spared-fm-"))
print(folder)

# %% [markdown]
# ## Five patients
#
# Three to train on, one to choose on (`val`), one for the end (`test`).

# %%
generate_study(folder / "slides", n_slides=5, n_patients=5, spots_per_side=8, n_genes=200, seed=2)
parts = {"P1": "train", "P2": "train", "P3": "train", "P4": "val", "P5": "test"}
study = spared_fm.open(folder / "store", create=True)
for row in pd.read_csv(folder / "slides" / "study.csv", dtype=str).itertuples():
    study.ingest(folder / "slides" / row.path, slide=row.slide, patient=row.patient, split=parts[row.patient])

# %% [markdown]
# ## Three encoders, one reading of the pixels
#
# - `stain-bank`: stains and textures, built in.
# - `colour-stats`: twelve numbers about colour. A floor: what beats it sees more than colour.
# - `timm:mobilenetv3_small_100`: a network with random weights. Another floor: what beats it has learnt something.
#
# On your own slides a foundation model belongs here (`spared-fm encoders` lists 59).

# %%
ENCODERS = ["stain-bank", "colour-stats", "timm:mobilenetv3_small_100"]
encoded = pd.DataFrame(study.encode(ENCODERS))
encoded[["encoder", "key", "dim", "patches"]]

# %% [markdown]
# ## Two cohorts from the same embeddings
#
# To choose, a cohort whose held-out slide is the validation one; the test slide is not in it, so nothing can leak from
# it. For the end, one with the test slide, in which train and validation slides are fitted on. Embeddings are computed
# once and serve both.

# %%
patient = {name: study.slide(name).uns["spatial"][name]["metadata"]["patient"] for name in study.slides}
choosing = {name: "train" if parts[who] == "train" else "test" for name, who in patient.items() if parts[who] != "test"}
final = {name: "test" if parts[who] == "test" else "train" for name, who in patient.items()}
for cohort, split in {"choosing": choosing, "final": final}.items():
    pd.Series(split, name="split").to_csv(folder / f"{cohort}.csv", index_label="slide")
    study.cohort(cohort, slides=list(split), split=folder / f"{cohort}.csv", n_genes=30, panel="variance")

# %% [markdown]
# ## Declare, then run
#
# Every cell of the matrix (encoder × head × target) is kept with the digest of all that decides it. A run that was
# stopped goes on where it was; a cell whose inputs changed is computed again. `spared-fm benchmark run` does the same
# from the command line.

# %%
HEADS = {name: f'"{name}"' for name in ("gene-mean", "coordinates", "ridge", "pca-ridge", "knn")}
# sees the spots around, too; of its vectors the first 16 components, which is quick
HEADS["context-ridge"] = '{name = "context-ridge", params = {components = 16}}'


def declare(name: str, encoders: list[str], heads: list[str]) -> Path:
    """Write a benchmark's declaration."""
    lines = [
        f'name = "{name}"',
        f'cohorts = ["{name}"]',
        f"encoders = {encoders}",
        f"heads = [{', '.join(HEADS[head] for head in dict.fromkeys(heads))}]",
        'targets = ["lognorm"]',
        'protocol = "strict"',
        'score = "all"',
    ]
    file = folder / f"{name}.toml"
    file.write_text("\n".join([*lines, ""]))
    return file


KEYS = list(encoded["key"])
print(declare("choosing", KEYS, list(HEADS)).read_text())
study.run_benchmark(folder / "choosing.toml")
table = study.show_benchmark("choosing")
table["status"].value_counts()

# %%
pooled = table[(table["over"] == "pooled") & (table["split"] == "test")]
chosen_on = pooled.pivot_table(index="head", columns="encoder", values="pcc_gene", dropna=False)
chosen_on.round(3)

# %% [markdown]
# ## Read it
#
# Two rows are no rivals. `gene-mean` has no correlation at all. `coordinates` doesn't see the image: it knows only
# where the spot lies, and does well where slides are laid out alike. It is the warning lamp of the table. A difference
# of .01 between two real heads is noise on one slide: the report gives intervals.

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
shown = chosen_on.drop(index="gene-mean")
for i, encoder in enumerate(shown.columns):
    axis.scatter(shown[encoder], np.arange(len(shown)) + 0.15 * (i - 1), label=encoder, marker="osD"[i])
axis.set(yticks=range(len(shown)), yticklabels=shown.index, xlabel="PCC-Gene on the validation slide")
axis.axvline(0, color="grey", linewidth=0.8)
axis.legend(frameon=False)
figure.savefig(folder / "choosing.png", dpi=80)

# %% [markdown]
# ## Choose, then look at the test slide once

# %%
fair = shown.drop(index="coordinates").stack()
head, encoder = fair.idxmax()
print(f"chosen: {head} on {encoder}, {fair.max():.3f} on the validation slide")

# %%
study.run_benchmark(declare("final", list(dict.fromkeys([encoder, "colour-stats"])), ["gene-mean", "ridge", head]))
last = study.show_benchmark("final")
last = last[(last["over"] == "pooled") & (last["split"] == "test")]
last[["encoder", "head", "pcc_gene", "mse", "n_spots"]].round(3)

# %% [markdown]
# The winner of many comparisons is partly lucky: expect its test score to be lower than the one it was chosen by. It is
# the test score that goes into a paper, with its interval and with the floors beside it.
#
# A report is one HTML file without scripts or network, fit for printing. It asks its own questions of the matrix: does
# a head that sees the surroundings help, does retrieval? With 100 resamples it takes seconds; the default is 1000.

# %%
for name in ("choosing", "final"):
    found = study.report_benchmark(name, folder / f"{name}.html", n_resamples=100)
    for answer in found["answers"]:
        print("-", answer["said"])
    print(found["report"])
