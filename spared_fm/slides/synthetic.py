"""A synthetic study: image and expression of each slide come from one hidden truth, written beside them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from spared_fm.errors import InputError
from spared_fm.slides.synthetic_tissue import (
    FIELD_UM,
    REGIONS,
    Nuclei,
    Stain,
    Tissue,
    draw_stain,
    grow_tissue,
    render,
    scatter_nuclei,
)

PITCH_UM = 100.0
SPOT_UM = 55.0
_MARGIN_UM = 110.0
_PROGRAMMES = (*REGIONS, "density", "hidden")
_MARKER_SHARE = 0.07  # of the genes, per programme


@dataclass(frozen=True)
class _Genes:
    names: list[str]
    programme: list[str]
    base: np.ndarray  # (gene,) log abundance
    loading: np.ndarray  # (programme, gene) log-fold per unit of the programme
    size: np.ndarray  # (gene,) negative-binomial size


def generate_study(
    folder: str | Path,
    *,
    n_slides: int = 4,
    n_patients: int = 2,
    seed: int = 0,
    n_genes: int = 600,
    spots_per_side: int = 20,
    mpp: tuple[float, float] = (0.6, 0.8),
) -> list[Path]:
    """Write a study of synthetic Visium-like slides.

    Each slide is a folder with ``counts.h5ad`` (raw counts; scanpy's Visium convention in
    ``uns['spatial']``) and ``image.jpg``, like a real one, plus the truth it was drawn from. Regions with
    their own nuclei, stain and texture drive gene programmes, as does the local density of nuclei; one
    programme (``hidden``) leaves no trace in the image. Counts carry patient effects, library-size noise,
    over-dispersion and dropout.

    Parameters
    ----------
    folder
        Where the slide folders and ``study.csv`` (slide, path, patient, split) go; made if absent.
    n_slides, n_patients
        Slides are dealt to patients in order; those of the last patient are the ``test`` split, the others
        ``train``.
    seed
        The same arguments give the same pixels and the same counts.
    n_genes
        Genes per slide.
    spots_per_side
        Rows and columns of the hexagonal grid of 100 µm pitch; about three quarters of the spots lie on
        tissue.
    mpp
        Range of the pixel size, micrometres per pixel; each slide draws its own.

    Returns
    -------
    list of pathlib.Path
        Slide folders, in order. ``counts.h5ad`` holds ``X`` (int32 CSR), ``layers['true_lognorm']``
        (float32, ln(1 + expected counts per 10⁴) without any noise), ``obs`` (in_tissue, array_row,
        array_col, region, nuclei_per_mm2, true_library_size), ``var['programme']`` and ``obsm['spatial']``
        (pixel x, y).

    Raises
    ------
    InputError
        Fewer than two patients, a training split of fewer than two slides, or sizes that make no slide.
    """
    patient_of = [int(p) for p in np.repeat(np.arange(n_patients), _deal(n_slides, n_patients))]
    if spots_per_side < 4 or n_genes < 20 or not 0 < mpp[0] <= mpp[1]:
        raise InputError("a synthetic slide needs at least 4 spots per side, 20 genes and a range of positive mpp")
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    genes = _draw_genes(np.random.default_rng([seed, 1]), n_genes)
    rows, paths = [], []
    for index, patient in enumerate(patient_of):
        name = f"synthetic_p{patient + 1}_s{index + 1}"
        person = np.random.default_rng([seed, 2, patient])
        stain, shift = draw_stain(person), person.normal(0, 0.2, n_genes)
        rng = np.random.default_rng([seed, 3, index])
        slide, image = _draw_slide(rng, name, f"P{patient + 1}", stain, genes, shift, spots_per_side, mpp)
        path = root / name
        path.mkdir(exist_ok=True)
        Image.fromarray(image).save(path / "image.jpg", quality=92)
        slide.write_h5ad(path / "counts.h5ad", compression="gzip")
        paths.append(path)
        rows.append((name, name, f"P{patient + 1}", "test" if patient == n_patients - 1 else "train"))
    with (root / "study.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("slide", "path", "patient", "split"), *rows])
    return paths


def _deal(n_slides: int, n_patients: int) -> list[int]:
    if n_patients < 2 or n_slides < n_patients:
        raise InputError(f"{n_slides} slides of {n_patients} patients: a held-out patient needs two, with a slide each")
    dealt = [len(part) for part in np.array_split(np.arange(n_slides), n_patients)]
    if sum(dealt[:-1]) < 2:
        raise InputError(f"{n_slides} slides of {n_patients} patients leave fewer than two to train on: ask for more")
    return dealt


def _draw_genes(rng: np.random.Generator, n_genes: int) -> _Genes:
    programme = np.full(n_genes, "none", dtype=object)
    per = max(1, int(_MARKER_SHARE * n_genes))
    loading = rng.normal(0, 0.12, (len(_PROGRAMMES), n_genes))
    base = rng.normal(0, 1.3, n_genes)
    chosen = rng.permutation(n_genes)[: per * len(_PROGRAMMES)].reshape(len(_PROGRAMMES), per)
    for row, (name, columns) in enumerate(zip(_PROGRAMMES, chosen, strict=True)):
        programme[columns] = name
        strength = (0.9, 2.4) if name in REGIONS else (0.35, 0.9)
        loading[row, columns] += rng.uniform(*strength, per)
        base[columns] = rng.normal(0.6, 0.8, per)  # markers are expressed well enough to be seen
    names = [f"SYN{i + 1:04d}" if p == "none" else f"SYN{i + 1:04d}-{p}" for i, p in enumerate(programme)]
    return _Genes(names, list(programme), base, loading, rng.uniform(3, 15, n_genes))


def _draw_slide(
    rng: np.random.Generator,
    name: str,
    patient: str,
    stain: Stain,
    genes: _Genes,
    shift: np.ndarray,
    spots_per_side: int,
    mpp: tuple[float, float],
) -> tuple[ad.AnnData, np.ndarray]:
    row, col = (a.ravel() for a in np.mgrid[:spots_per_side, :spots_per_side])
    array_col = 2 * col + row % 2
    xy_um = np.column_stack([array_col * PITCH_UM / 2, row * PITCH_UM * np.sqrt(3) / 2]) + _MARGIN_UM
    width, height = xy_um.max(axis=0) + _MARGIN_UM
    tissue = grow_tissue(rng, float(width), float(height))
    nuclei = scatter_nuclei(rng, tissue)
    um_per_px = round(float(rng.uniform(*mpp)), 4)
    image = render(rng, tissue, nuclei, stain, um_per_px)

    on_tissue = _around(tissue.inside, xy_um) > 0
    xy_um, row, array_col = xy_um[on_tissue], row[on_tissue], array_col[on_tissue]
    share, per_mm2, state = _spot_state(rng, tissue, nuclei, xy_um)
    abundance = np.exp(genes.base + shift + state @ genes.loading)
    expected = abundance / abundance.sum(axis=1, keepdims=True)
    library = 2600 * (0.35 + per_mm2 / 4000) ** 0.6 * rng.lognormal(0, 0.35, len(xy_um))
    counts = _measure(rng, expected * library[:, None], genes.size)

    obs = pd.DataFrame(
        {
            "in_tissue": np.ones(len(row), np.int64),
            "array_row": row,
            "array_col": array_col,
            "region": pd.Categorical(np.array(REGIONS)[share.argmax(axis=1)], categories=list(REGIONS)),
            "nuclei_per_mm2": per_mm2,
            "true_library_size": library,
        },
        index=[f"r{r:02d}c{c:02d}-1" for r, c in zip(row, array_col, strict=True)],
    )
    slide = ad.AnnData(
        X=sp.csr_matrix(counts),
        obs=obs,
        var=pd.DataFrame({"programme": pd.Categorical(genes.programme)}, index=genes.names),
        layers={"true_lognorm": np.log1p(1e4 * expected).astype(np.float32)},
        obsm={"spatial": xy_um / um_per_px},
        uns={"spatial": {name: _visium(image, name, patient, um_per_px)}},
    )
    return slide, image


def _spot_state(
    rng: np.random.Generator, tissue: Tissue, nuclei: Nuclei, xy_um: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Region shares, nuclei per mm² and the value of each programme at the spots."""
    share = np.column_stack([_around(s, xy_um) for s in tissue.regions()])
    radius = 45.0
    found = cKDTree(nuclei.xy_um).query_ball_point(xy_um, radius, return_length=True)
    per_mm2 = found / (np.pi * radius**2) * 1e6
    hidden = gaussian_filter(rng.standard_normal(tissue.inside.shape), 150 / FIELD_UM)
    hidden = _around(hidden / hidden.std(), xy_um)
    crowding = np.clip(np.log((per_mm2 + 200) / 3000), -3, 2)
    return share, per_mm2, np.column_stack([share, crowding, hidden])


def _measure(rng: np.random.Generator, expected: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Negative-binomial counts with dropout that spares what is expressed strongly."""
    counts = rng.poisson(rng.gamma(size, expected / size))
    dropped = rng.random(expected.shape) < 0.3 * np.exp(-expected / 4)
    return np.where(dropped, 0, counts).astype(np.int32)


def _around(field: np.ndarray, xy_um: np.ndarray) -> np.ndarray:
    """Average of a coarse map over about a spot's area around each point."""
    smooth = gaussian_filter(field.astype(np.float64), SPOT_UM / 4 / FIELD_UM)
    return map_coordinates(smooth, (xy_um / FIELD_UM - 0.5)[:, ::-1].T, order=1, mode="nearest")


def _visium(image: np.ndarray, name: str, patient: str, um_per_px: float) -> dict[str, dict[str, object]]:
    """Scanpy's Visium convention for one slide."""
    height, width = image.shape[:2]
    images: dict[str, object] = {}
    factors: dict[str, object] = {
        "spot_diameter_fullres": SPOT_UM / um_per_px,
        "fiducial_diameter_fullres": 1.6 * SPOT_UM / um_per_px,
    }
    for key, side in (("hires", 1000), ("lowres", 300)):
        scale = min(1.0, side / max(width, height))
        small = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
        images[key], factors[f"tissue_{key}_scalef"] = np.asarray(small), scale
    metadata: dict[str, object] = {
        "synthetic": True,
        "patient": patient,
        "section": name,
        "organism": "none",
        "tissue": "synthetic",
        "technology": "synthetic (Visium-like hexagonal grid)",
        "source_image_path": "image.jpg",
        "image_width_px": width,
        "image_height_px": height,
        "um_per_px": um_per_px,
        "spot_diameter_um": SPOT_UM,
        "spot_pitch_um": PITCH_UM,
    }
    return {"images": images, "scalefactors": factors, "metadata": metadata}
