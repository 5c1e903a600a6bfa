"""Real data for measurements of completion, as raw counts of a panel chosen on training spots.

Used by the other completion scripts; run alone it prints what there is:

    python benchmarks/completion_data.py

her2st: 22 sections of 5 patients; train A, D, E, validate C, test F; SpaRED's gene filter and panel of 128 (Moran's I)
in strict mode, without ComBat. crc16: one Visium slide, cut into bands along its longer side: 60 % train, 20 % validation,
20 % test, with a gap of two pitches between them, and 32 genes, SpaRED's panel where its filter leaves no more than 320 (here
114). Its parts are of one patient, so its scores say nothing about new patients.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from spared_fm.targets.completion.data import Panel, Section, hide, mask_probability, panel_of
from spared_fm.targets.completion.hiding import Counts, rng_of, section

SHARED = Path(os.environ.get("SPARED_FM_SHARED_DATA", "/work/shared/data"))
CACHE = Path(tempfile.gettempdir()) / "spared_fm_completion"
HER2ST_SPLIT = {"A": "train", "D": "train", "E": "train", "C": "val", "F": "test"}


def her2st() -> tuple[list[Counts], tuple[str, ...]]:
    """Sections of the HER2+ study and the panel's genes."""
    return _cached("her2st", _build_her2st, k=8)


def crc16() -> tuple[list[Counts], tuple[str, ...]]:
    """Three bands of the colorectal Visium slide and the panel's genes."""
    return _cached("crc16", _build_crc16, k=6)


def of_split(raw: Sequence[Counts], split: str) -> list[Counts]:
    """Slides of one split."""
    return [one for one in raw if one.split == split]


def sections(raw: Sequence[Counts], hidden: Sequence[np.ndarray] | None = None) -> list[Section]:
    """Slides as a method sees them, entries hidden first (``hidden``: one bool array per slide)."""
    return [section(one, None if hidden is None else hidden[i]) for i, one in enumerate(raw)]


def panel(raw: Sequence[Counts], genes: Sequence[str]) -> Panel:
    """Panel with the measured shares of the training slides."""
    return panel_of(sections(of_split(raw, "train")), genes)


def hidden(raw: Sequence[Counts], panel: Panel, rule: str | float = "spared", repeat: int = 0) -> list[np.ndarray]:
    """Entries hidden in one repeat: the same ones as the evaluation hides."""
    probability = mask_probability(panel.measured, rule)
    return [hide(one.counts > 0, probability, rng_of(one.slide, repeat)) for one in raw]


def _build_her2st() -> dict[str, np.ndarray]:
    adata = ad.read_h5ad(SHARED / "her2st_counts.h5ad")
    adata.obs["split"] = adata.obs["patient"].astype(str).map(HER2ST_SPLIT)
    return _build(adata, hex_geometry=False, n_genes=128)


def _build_crc16() -> dict[str, np.ndarray]:
    from spared_fm.slides.counts import read_slides

    slide = next(iter(read_slides(SHARED / "spaceranger" / "crc16_complete" / "outs")))
    adata = slide.adata.copy()
    xy = np.asarray(adata.obsm["spatial"], np.float64)
    adata.obs["split"] = bands(xy)
    adata = adata[adata.obs["split"] != ""].copy()
    adata.obs["slide_id"] = "crc16_" + adata.obs["split"].astype(str)
    return _build(adata, hex_geometry=True, n_genes=32)


def bands(xy: np.ndarray, shares: tuple[float, float] = (0.6, 0.8), pitches: float = 2.0) -> np.ndarray:
    """Split of each spot by its place along the longer side; "" in the gap between two bands."""
    from spared_fm.targets.neighbors import nearest

    along = xy[:, np.ptp(xy, axis=0).argmax()]
    pitch = np.median(np.linalg.norm(xy[nearest(xy, 1)[:, 0]] - xy, axis=1))
    cuts = np.quantile(along, shares)
    part = np.array(["train", "val", "test"], object)[np.searchsorted(cuts, along)]
    part[np.abs(along[:, None] - cuts).min(axis=1) < pitches * pitch / 2] = ""
    return part


def _build(adata: ad.AnnData, *, hex_geometry: bool, n_genes: int) -> dict[str, np.ndarray]:
    """Panel by SpaRED's rule, and per spot what the genes outside it count for."""
    from spared_fm.targets.genes import harmonise
    from spared_fm.targets.spared.process import process_dataset

    totals = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), adata.obs_names)
    adata, _ = harmonise(adata, "human")
    params: dict[str, Any] = {
        "organism": "human",
        "hex_geometry": hex_geometry,
        "combat_key": "None",
        "top_moran_genes": n_genes,
    }
    done = process_dataset(adata, params, mode="strict")
    panel_counts = np.asarray(done.layers["counts"], np.float32)
    return {
        "genes": done.var_names.to_numpy(str),
        "lengths": done.var["gene_length"].to_numpy(np.float64),
        "counts": panel_counts,
        "rest_counts": totals[done.obs_names].to_numpy(np.float64) - panel_counts.sum(axis=1, dtype=np.float64),
        "rest_per_base": done.obs["tpm_rest"].to_numpy(np.float64),
        "xy": np.asarray(done.obsm["spatial"], np.float64),
        "slide": done.obs["slide_id"].to_numpy(str),
        "split": done.obs["split"].to_numpy(str),
    }


def _cached(name: str, build: Callable[[], dict[str, np.ndarray]], k: int) -> tuple[list[Counts], tuple[str, ...]]:
    path = CACHE / f"{name}.npz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(half, **build())
        half.replace(path)
    with np.load(path) as file:
        arrays = dict(file)
    per_spot = ("counts", "rest_counts", "rest_per_base", "xy")
    raw = []
    for slide in dict.fromkeys(arrays["slide"]):
        rows = arrays["slide"] == slide
        split = str(arrays["split"][rows][0])
        raw.append(
            Counts(str(slide), split, **{key: arrays[key][rows] for key in per_spot}, lengths=arrays["lengths"], k=k)
        )
    return raw, tuple(str(gene) for gene in arrays["genes"])


def main() -> None:
    """Print slides, spots and shares."""
    for name, load in (("her2st", her2st), ("crc16", crc16)):
        raw, genes = load()
        known = panel(raw, genes)
        for split in ("train", "val", "test"):
            part = of_split(raw, split)
            gone = hidden(part, known)
            measured = sum(int((one.counts > 0).sum()) for one in part)
            entries = sum(one.counts.size for one in part)
            print(
                f"{name} {split}: {len(part)} slides, {sum(len(one.counts) for one in part)} spots × {len(genes)} genes, "
                f"{measured / entries:.1%} measured, of which the SpaRED rule hides {sum(map(np.sum, gone)) / measured:.1%}"
            )


if __name__ == "__main__":
    main()
