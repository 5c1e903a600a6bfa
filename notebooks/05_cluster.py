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
# # 5. A cohort on a cluster
#
# Hundreds of slides are encoded by many machines at once. Workers write their own chunks of the store, and nothing
# large travels between them; whatever dies, the same command goes on where it stopped.
#
# **No SLURM is needed here.** Two processes of this machine (a dask `LocalCluster`) stand in for the cluster's nodes.
# It is the same script, and the same path through the code, with `pipelines/local.toml` instead of
# `pipelines/slurm.toml`. The slides are **synthetic**.

# %%
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import spared_fm
from spared_fm.slides.synthetic import generate_study

folder = Path(tempfile.mkdtemp(prefix="spared-fm-"))
pipelines = Path(spared_fm.__file__).parents[1] / "pipelines"
print(folder)

# %% [markdown]
# ## Ingest, on the login node
#
# A table lists the slides: path, id, patient, split. This is quick, and needs no cluster.

# %%
generate_study(folder / "slides", n_slides=3, n_patients=3, spots_per_side=10, n_genes=100, seed=5)
study = spared_fm.open(folder / "store", create=True)
table = pd.DataFrame(study.ingest_table(folder / "slides" / "study.csv"))
table[["slide", "status", "spots", "mpp"]]

# %% [markdown]
# ## What would it do, how long, how much disk?

# %%
pd.DataFrame(study.forecast("stain-bank"))

# %% [markdown]
# ## The job that SLURM would get
#
# Copy `slurm.toml`, set your partition, and look at the job script before anything is submitted.

# %%
script = [sys.executable, str(pipelines / "encode_cluster.py")]
asked = subprocess.run(
    [*script, "--config", str(pipelines / "slurm.toml"), "--print-job-script"],
    capture_output=True,
    text=True,
    check=True,
)
print(asked.stdout)

# %% [markdown]
# ## Encode, and pull the plug
#
# On the login node the command is the same with `slurm.toml`. Here it runs on this machine, with small chunks, so that
# there is something to interrupt: as soon as some chunks are finished, the whole thing is killed, workers and all, as a
# power cut would do it.

# %%
settings = (pipelines / "local.toml").read_text().replace("min_workers = 1", "min_workers = 2")
(folder / "cluster.toml").write_text(f"{settings}\nchunk_rows = 24\n")
command = [
    *script,
    "--config",
    str(folder / "cluster.toml"),
    "--store",
    str(folder / "store"),
    "--encoder",
    "stain-bank",
]


def finished() -> int:
    """Chunks with a receipt."""
    return len(list((folder / "store").rglob("receipts/*.json")))


running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
while finished() < 3 and running.poll() is None:
    time.sleep(0.05)
os.killpg(running.pid, signal.SIGKILL)
running.wait()
kept = finished()
print(f"killed with {kept} chunks finished")

# %% [markdown]
# A chunk counts when its receipt is there. Rows without one are refused, so a half-written array is never taken for
# data:

# %%
try:
    for name in study.slides:
        study.features(name, "stain-bank")
except ValueError as error:
    print(error)

# %% [markdown]
# Run it again. Finished chunks are not computed again; the array is the same to the last bit as one that was never
# interrupted.

# %%
again = subprocess.run(command, capture_output=True, text=True, check=True)
print(again.stdout)

# %%
whole = spared_fm.open(folder / "uninterrupted", create=True)
whole.ingest_table(folder / "slides" / "study.csv")
whole.encode("stain-bank", chunk_rows=24)
for name in study.slides:
    assert np.array_equal(study.features(name, "stain-bank"), whole.features(name, "stain-bank"), equal_nan=True)
print("identical to an array that was never interrupted")

# %% [markdown]
# ## Where did the time go?
#
# Every run is recorded with the time of each stage. When a cluster is five times slower than yesterday, this says
# whether it reads or computes.

# %%
runs = [run for run in study.info()["runs"] if run["verb"] == "encode"]
stages = pd.DataFrame([run["stages"] for run in runs], index=[f"run {i + 1}" for i in range(len(runs))])
axis = stages.plot.barh(stacked=True, figsize=(8, 2.5), xlabel="seconds, summed over cores")
axis.legend(ncol=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.3))
axis.figure.savefig(folder / "stages.png", dpi=80, bbox_inches="tight")

# %% [markdown]
# ## After it: the same verbs as on a laptop
#
# `study.index(…, scheduler=address)` and `study.run_benchmark(…, scheduler=address)` take the address of a running dask
# scheduler, too.

# %%
assert not study.verify()
study.cohort("c", n_genes=20, panel="variance")
scores = study.benchmark("c", encoders=["stain-bank"], heads=["gene-mean", "ridge"])
scores[scores["slide"].isna()][["head", "split", "pcc_gene", "n_spots"]]
