"""SpaRED's parameters, under SpaRED's names."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

IGNORED = frozenset(
    {"min_exp_frac", "min_glob_exp_frac", "random_samples", "plotting_slides", "plotting_genes", "patch_scale"}
    | {"patch_size", "force_compute", "dataset", "n_hops", "prediction_layer"}
)
"""Keys of SpaRED's configuration files that change nothing in its preprocessing; they may be given and do nothing."""


@dataclass(frozen=True)
class Params:
    """What the preprocessing depends on; defaults are those of SpaRED's configuration files.

    Attributes
    ----------
    organism
        ``"human"`` or ``"mouse"``: which table of gene lengths. None: no length is known, so there is no TPM.
    cell_min_counts, cell_max_counts
        Spots with total counts strictly between the two are kept.
    gene_min_counts, gene_max_counts
        Genes with total counts over the whole collection strictly between the two are kept.
    real_data_percentage
        Lower bound of the running mean of expression fractions (0 to 1), see
        :func:`spared_fm.targets.spared.filtering.gene_prefix`.
    wildcard_genes
        Path of a text file of gene ids, one a line, which replaces both gene filters; ``"None"``: no file.
    top_moran_genes
        Panel size; 0 or less: 128 where more than 320 genes are left, else 32.
    combat_key
        Column of ``obs`` with the batches of ComBat; ``"None"``: no ComBat.
    hex_geometry
        True: 6 nearest neighbours; False: square grid of 8, see :mod:`spared_fm.targets.spared.graph`.
    """

    organism: str | None
    cell_min_counts: float = 10
    cell_max_counts: float = 1e6
    gene_min_counts: float = 10
    gene_max_counts: float = 1e6
    real_data_percentage: float = 0.7
    wildcard_genes: str = "None"
    top_moran_genes: int = 128
    combat_key: str = "slide_id"
    hex_geometry: bool = True


def read_params(params: Mapping[str, Any], *, may_lack_organism: bool = False) -> Params:
    """Check a dictionary of SpaRED's parameters.

    Parameters
    ----------
    params
        SpaRED's names and values.
    may_lack_organism
        Allow an organism of None.

    Raises
    ------
    InputError
        A key that SpaRED does not have, no organism, or one that is neither human nor mouse.
    """
    known = [f.name for f in fields(Params)]
    for key in params:
        if key not in known and key not in IGNORED:
            close = difflib.get_close_matches(key, known, 1)
            raise InputError(f"unknown parameter {key!r}: {f'did you mean {close[0]}' if close else 'remove it'}")
    organism = params.get("organism")
    if organism not in ("human", "mouse") and not (organism is None and may_lack_organism):
        raise InputError(f"parameter organism is {organism!r}: give 'human' or 'mouse'")
    return Params(**{"organism": None} | {key: value for key, value in params.items() if key in known})
