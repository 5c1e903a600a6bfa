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
# # 4. Similarity search and annotation transfer
#
# "Where else does tissue look like this?" Two patches look alike when their vectors point the same way. From the answer
# follows a second question: a pathologist annotated some slides; what would the label be on a slide nobody has
# annotated?
#
# The slides are **synthetic**: regions with their own nuclei and stain, drawn by this package. `obs["region"]` says
# which region a spot lies in.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

import spared_fm
from spared_fm.slides.synthetic import generate_study

folder = Path(tempfile.mkdtemp(prefix="spared-fm-"))
print(folder)

# %%
generate_study(folder / "slides", n_slides=3, n_patients=3, spots_per_side=11, n_genes=200, seed=4)
study = spared_fm.open(folder / "store", create=True)
for row in pd.read_csv(folder / "slides" / "study.csv", dtype=str).itertuples():
    study.ingest(folder / "slides" / row.path, slide=row.slide, patient=row.patient, split=row.split)
study.encode("stain-bank")
new = study.slides[-1]
slide = study.slide(new)
slide.obs["region"].value_counts()

# %% [markdown]
# ## Search
#
# Ask with a spot. `exclude="patient"` leaves out slides of the same patient: otherwise the nearest patches are the
# spot's own neighbours, which is true and tells nothing. `columns` and `genes` come along with each result.

# %%
query = f"{new}/{slide.obs_names[50]}"
gene = study.slide(new).var_names[0]
hits = study.search(
    "stain-bank", spots=[query], k=5, exclude="patient", columns=["region"], genes=[gene], montage=folder / "hits.png"
)
hits[["rank", "spot", "patient", "similarity", "region", f"counts:{gene}"]]

# %%
figure, axis = plt.subplots(figsize=(10, 2.6), layout="constrained")
axis.imshow(Image.open(folder / "hits.png"))
axis.axis("off")
figure.savefig(folder / "search.png", dpi=80)

# %% [markdown]
# Other questions take the same form: `images=["crop.png"]` asks with a file (give its `mpp`),
# `regions=["slide1:812,930um"]` with a place on a slide, `vectors` with numbers; `where={"region": "tumour*"}`
# restricts what may be found; `one_per_slide=True` gives the best spot of each slide.
#
# A square of 300 µm around the same spot, tiled with patches and searched by their mean:

# %%
mpp = slide.uns["spatial"][new]["metadata"]["um_per_px"]
x, y = slide.obsm["spatial"][50] * mpp
area = f"{new}:{x:.0f},{y:.0f},300um"
study.search("stain-bank", regions=[area], one_per_slide=True, exclude="patient")[["query", "spot", "similarity"]]

# %% [markdown]
# ## An index
#
# On these few spots every row is compared, which is exact. From a hundred thousand spots on an index is quicker. It is
# brought up to date, not built anew, when slides come and go; its **recall** (how many of the true ten nearest it
# finds) is measured when it is made. A search refuses an index that is not of what the store holds now.

# %%
made = study.index("stain-bank")
same = study.search("stain-bank", spots=[query], k=5, exclude="patient")
assert list(same["spot"]) == list(hits["spot"])
{name: value for name, value in made.items() if isinstance(value, str | int | float)}

# %% [markdown]
# ## Transfer an annotation
#
# Each spot of the new slide takes the label of the spots on other patients' slides that look most like it. They vote,
# the nearest loudest. `share` is the part of the votes that the winner got, and `evidence` the voters themselves: you
# can always look at them.

# %%
spots = [f"{new}/{barcode}" for barcode in slide.obs_names]
given = study.transfer("stain-bank", spots=spots, label="region", k=15, exclude="patient")
given[["query", "label", "share", "neighbours"]].head()

# %%
truth = slide.obs["region"].astype(str).to_numpy()
found = given["label"].to_numpy()
others = [study.slide(name).obs["region"].astype(str) for name in study.slides[:-1]]
commonest = pd.concat(others).value_counts().idxmax()
print(f"right: {np.mean(found == truth):.0%}; always saying {commonest!r}: {np.mean(truth == commonest):.0%}")
pd.crosstab(pd.Series(truth, name="drawn as"), pd.Series(found, name="transferred"))

# %% [markdown]
# The second number is the floor: a transfer that doesn't beat the commonest label knows nothing. Does `share` know when
# the transfer is wrong?

# %%
shares = given["share"].to_numpy()
sure = shares >= np.median(shares)
right = found == truth
print(f"right where the votes agree: {right[sure].mean():.0%}, where they don't: {right[~sure].mean():.0%}")

# %%
names = sorted(set(truth) | set(found))
# told apart with any kind of colour vision (Okabe and Ito)
colours = dict(zip(names, ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"], strict=False))
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for axis, (title, labels) in zip(axes, {"as drawn": truth, "transferred": found}.items(), strict=False):
    for name in names:
        axis.scatter(*slide.obsm["spatial"][labels == name].T, color=colours[name], s=45, label=name)
    axis.set(title=title, aspect="equal", xticks=[], yticks=[])
    axis.invert_yaxis()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncol=len(names), frameon=False)
dots = axes[2].scatter(*slide.obsm["spatial"].T, c=shares, s=45, cmap="cividis", vmin=0, vmax=1)
axes[2].set(title="share of the votes", aspect="equal", xticks=[], yticks=[])
axes[2].invert_yaxis()
figure.colorbar(dots, ax=axes[2])
figure.savefig(folder / "transfer.png", dpi=80)

# %% [markdown]
# ## Transfer expression
#
# The same with genes: the weighted mean of the neighbours, and their spread. It is a model without training (a head
# `knn` does the same inside a benchmark) and each number can be traced to the spots it came from.

# %%
cohort = study.cohort("c", n_genes=20, panel="variance")
genes = list(study.cohort_data("c").var_names[:3])
expression = study.transfer("stain-bank", spots=spots, genes=genes, layer="lognorm", cohort="c", exclude="patient")
data = study.cohort_data("c")
own = data[(data.obs["slide"] == new).to_numpy()]
measured = pd.DataFrame(own.layers["lognorm"], index=new + "/" + own.obs["barcode"].astype(str), columns=own.var_names)
for one in genes:
    together = np.corrcoef(measured.loc[expression["query"], one], expression[f"lognorm:{one}"])[0, 1]
    print(f"{one}: correlation with what was measured {together:.2f}")

# %% [markdown]
# What looks alike need not be alike: similarity also follows stain and scanner. Look at which slides the results come
# from; when they all come from one laboratory, the vectors see the laboratory. The batch-effect gate of a benchmark
# report measures that.
