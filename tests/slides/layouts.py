"""Writers of small slides in every layout the readers know, and of images with a known truth."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import io as scipy_io
from scipy import sparse

from spared_fm.slides.images import BaseReader, Level

PITCH_PX = 40.0


class ArrayImage(BaseReader):
    """An image that is an array (height, width, 3); `levels` may add coarser arrays."""

    def __init__(self, *levels: np.ndarray, mpp: float | None = None) -> None:
        self.path = Path("array")
        self.arrays = levels
        self.mpp = mpp
        top = levels[0].shape[1]
        self.levels = tuple(Level(a.shape[1], a.shape[0], float(round(top / a.shape[1]))) for a in levels)

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self.arrays[level][y : y + height, x : x + width]

    def close(self) -> None:
        pass


def smooth_image(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3) without sharp edges, so that lossy codecs and resampling keep it."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def hex_spots(rows: int = 6, columns: int = 5) -> pd.DataFrame:
    """A hexagonal array, numbered as Space Ranger does, in pixels; the last row is not under tissue."""
    spots = [(r, 2 * c + r % 2) for r in range(rows) for c in range(columns)]
    table = pd.DataFrame(spots, columns=["array_row", "array_col"])
    table["barcode"] = [f"SPOT{i:04d}-1" for i in range(len(spots))]
    table["in_tissue"] = (table["array_row"] < rows - 1).astype(int)
    table["x"] = 60.0 + table["array_col"] * PITCH_PX / 2
    table["y"] = 90.0 + table["array_row"] * PITCH_PX * np.sqrt(3) / 2
    return table


def poisson_counts(n_spots: int, n_genes: int, seed: int = 1) -> np.ndarray:
    """int32 (n_spots, n_genes) with no empty spot."""
    counts = np.random.default_rng(seed).poisson(0.7, (n_spots, n_genes)).astype(np.int32)
    counts[:, 0] += 1
    return counts


GENES = ["ACTB", "TBCE", "TBCE", "NA", "ERBB2"]  # one name twice, one that pandas takes for missing
GENE_IDS = [f"ENSG{i:011d}" for i in range(len(GENES))]


def write_10x_h5(path: Path, counts: np.ndarray, barcodes: list[str]) -> None:
    """A Cell Ranger 3 matrix: genes × barcodes, CSC."""
    matrix = sparse.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape, np.int32)
        features = group.create_group("features")
        features["id"] = np.array(GENE_IDS, "S")
        features["name"] = np.array(GENES, "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), "S")


def write_10x_mtx(folder: Path, counts: np.ndarray, barcodes: list[str]) -> None:
    folder.mkdir()
    text = io.BytesIO()
    scipy_io.mmwrite(text, sparse.coo_matrix(counts.T), field="integer")
    features = "".join(f"{i}\t{n}\tGene Expression\n" for i, n in zip(GENE_IDS, GENES, strict=True))
    for name, content in (
        ("matrix.mtx.gz", text.getvalue()),
        ("features.tsv.gz", features.encode()),
        ("barcodes.tsv.gz", "".join(f"{b}\n" for b in barcodes).encode()),
    ):
        (folder / name).write_bytes(gzip.compress(content))


def write_outs(folder: Path, *, version: int = 1, matrix: str = "h5", images: tuple[str, ...] = ("hires",)) -> Path:
    """`<folder>/outs` as Space Ranger 1, 2 or 3 leaves it: 1 has no header, 3 has fractional coordinates."""
    outs = folder / "outs"
    spatial = outs / "spatial"
    spatial.mkdir(parents=True)
    spots = hex_spots()
    under = spots[spots["in_tissue"] == 1].sort_values("barcode", ascending=False)  # another order than positions
    write = write_10x_h5 if matrix == "h5" else write_10x_mtx
    suffix = ".h5" if matrix == "h5" else ""
    write(
        outs / f"filtered_feature_bc_matrix{suffix}",
        poisson_counts(len(under), len(GENES)),
        under["barcode"].tolist(),
    )
    table = pd.DataFrame(
        {
            "barcode": spots["barcode"],
            "in_tissue": spots["in_tissue"],
            "array_row": spots["array_row"],
            "array_col": spots["array_col"],
            "pxl_row_in_fullres": spots["y"] if version == 3 else spots["y"].round().astype(int),
            "pxl_col_in_fullres": spots["x"] if version == 3 else spots["x"].round().astype(int),
        }
    )
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    table.to_csv(spatial / name, header=version > 1, index=False)
    scales = {"hires": 0.5, "lowres": 0.15}
    factors = {f"tissue_{k}_scalef": v for k, v in scales.items()}
    factors |= {"spot_diameter_fullres": 26.0, "fiducial_diameter_fullres": 42.0}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    for kind in images:
        size = round(400 * scales[kind]), round(360 * scales[kind])
        Image.fromarray(smooth_image(*size)).save(spatial / f"tissue_{kind}_image.png")
    return outs


def square_slide(n_side: int = 4, n_genes: int = 5, *, name: str = "s1", seed: int = 1) -> ad.AnnData:
    """A legacy ST slide in scanpy's Visium convention: 200 µm pitch, 0.8 µm per pixel."""
    row, col = (axis.ravel() for axis in np.mgrid[:n_side, :n_side])
    pitch = 200 / 0.8
    counts = poisson_counts(n_side**2, n_genes, seed)
    adata = ad.AnnData(
        X=sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {"in_tissue": 1, "array_row": row, "array_col": col},
            index=[f"{r}x{c}" for r, c in zip(row, col, strict=True)],
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]),
        obsm={"spatial": np.column_stack([100 + col * pitch, 150 + row * pitch])},
    )
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": smooth_image(60, 50) / 255.0},
            "scalefactors": {"spot_diameter_fullres": 125.0, "tissue_hires_scalef": 0.06},
            "metadata": {
                "um_per_px": 0.8,
                "spot_pitch_um": 200.0,
                "spot_diameter_um": 100.0,
                "patient": "P",
            },
        }
    }
    return adata


def write_folder(folder: Path, adata: ad.AnnData | None = None, size: tuple[int, int] = (1000, 1000)) -> Path:
    """A folder with counts.h5ad and image.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    (square_slide() if adata is None else adata).write_h5ad(folder / "counts.h5ad")
    Image.fromarray(smooth_image(*size)).save(folder / "image.jpg")
    return folder
