"""Small slides with known content."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable


def hex_grid(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Array row, array column and xy of a Visium-like grid with unit pitch."""
    r, c = np.divmod(np.arange(rows * cols), cols)
    array_col = 2 * c + r % 2
    return r, array_col, np.column_stack([array_col / 2, r * np.sqrt(3) / 2])


@pytest.fixture
def make_slide() -> Callable[..., ad.AnnData]:
    def make(seed: int = 0, *, n_genes: int = 30, rows: int = 6, cols: int = 7, prefix: str = "g") -> ad.AnnData:
        rng = np.random.default_rng(seed)
        array_row, array_col, xy = hex_grid(rows, cols)
        rate = rng.gamma(0.6, 3.0, n_genes) * rng.lognormal(0, 0.4, (rows * cols, 1))
        return ad.AnnData(
            X=sp.csr_matrix(rng.poisson(rate).astype(np.int32)),
            obs=pd.DataFrame(
                {"array_row": array_row, "array_col": array_col}, index=[f"b{i}" for i in range(rows * cols)]
            ),
            var=pd.DataFrame(index=[f"{prefix}{i:02d}" for i in range(n_genes)]),
            obsm={"spatial": xy * 100},
        )

    return make
