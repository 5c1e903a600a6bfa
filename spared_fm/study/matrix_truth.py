"""What the cells of a benchmark are scored on: truth, masks, places and patients of a cohort's held-out spots."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spared_fm.benchmark.matrix_scores import HeldOut
from spared_fm.store.nodes import read_elem
from spared_fm.study.cohort import cohort_record, gene_names
from spared_fm.study.cohort_split import units
from spared_fm.study.evaluate import Joined
from spared_fm.study.protocols import Fold, folds
from spared_fm.targets.neighbors import LAYOUT_NEIGHBORS, grid_layout, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from spared_fm.store.layout import Layout


class Place:
    """Where a cohort's spots are, and whose; read once.

    Attributes
    ----------
    record, obs
        The cohort's record and ``obs``.
    symbols
        Gene of the panel → its symbol, where there is one and no other gene has it.
    slide, patients
        Of each unit (see :func:`spared_fm.study.cohort_split.units`); a patient is None where not known.
    joined
        Rows, parts and places of the units, without embeddings: a kept benchmark is reported on though these are gone.
    """

    def __init__(self, layout: Layout, cohort: str) -> None:
        self.layout, self.cohort, self.record = layout, cohort, cohort_record(layout, cohort)
        self.obs: pd.DataFrame = read_elem(layout, f"{layout.cohort(cohort)}/obs")
        self.symbols = {stored: name for name, stored in gene_names(layout, cohort).items() if name != stored}
        spatial = np.asarray(read_elem(layout, f"{layout.cohort(cohort)}/obsm/spatial"), np.float64)[:, :2]
        found = units(self.obs, self.record["split"])
        self.slide = {unit: slide for unit, (slide, _, _) in found.items()}
        self.patients = {unit: self.record["patients"].get(slide) for unit, slide in self.slide.items()}
        self.joined = Joined(
            key="",
            features={},
            rows={unit: rows for unit, (_, _, rows) in found.items()},
            split={unit: part for unit, (_, part, _) in found.items()},
            patients={unit: self.patients[unit] or slide for unit, slide in self.slide.items()},
            coords={unit: spatial[rows] for unit, (_, _, rows) in found.items()},
            recipe_id="",
            blocks=(),
        )

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Unit → row numbers of its spots in the cohort."""
        return self.joined.rows

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """Unit → spot centres (spots, 2) in pixels."""
        return self.joined.coords

    @cached_property
    def neighbors(self) -> dict[str, np.ndarray]:
        """Unit → (spots, k): the nearest spots, as many as its grid has around a spot."""
        found = {}
        for unit, rows in self.rows.items():
            at = [self.obs[c].to_numpy()[rows] if c in self.obs else None for c in ("array_row", "array_col")]
            found[unit] = nearest(self.coords[unit], LAYOUT_NEIGHBORS[grid_layout(*at) or "hex"])
        return found


class Target:
    """What one target of a cohort is scored on, fold by fold.

    Attributes
    ----------
    folds
        See :func:`spared_fm.study.protocols.folds`.
    raw
        Name of the raw layer: of a completed target what it was completed from, else the target.
    held_out
        The part that is scored: ``test``, or ``val`` where no spot is for test.
    """

    def __init__(self, place: Place, target: str, protocol: str) -> None:
        self.place, self.target, self.protocol = place, target, protocol
        self.folds: list[Fold] = folds(place.layout, place.cohort, place.joined, target, protocol)
        self.raw = self.folds[0].raw_layer or target
        self.held_out = "test" if any("test" in fold.split.values() for fold in self.folds) else "val"

    def layers(self) -> list[str]:
        """Layers that a cell is scored on: its target, and the raw one."""
        return list(dict.fromkeys((self.target, self.raw)))

    def held(self, fold: Fold) -> list[str]:
        """Units of a fold that are scored."""
        return [unit for unit, part in fold.split.items() if part == self.held_out and len(self.place.rows[unit])]

    def named(self, fold: Fold) -> list[str]:
        """Name the genes of a fold for readers: by symbol where it is known."""
        return [self.place.symbols.get(gene, gene) for gene in fold.genes]

    def scored_on(self, layer: str) -> list[HeldOut]:
        """Give the truth of a layer, fold by fold."""
        return [
            HeldOut(
                genes=self.named(fold),
                truth={unit: values[unit] for unit in self.held(fold)},
                mask=None if fold.mask is None else {unit: fold.mask[unit] for unit in self.held(fold)},
                coords={unit: self.place.coords[unit] for unit in self.held(fold)},
                neighbors={unit: self.place.neighbors[unit] for unit in self.held(fold)},
                patients={unit: self.place.patients[unit] for unit in self.held(fold)},
            )
            for fold in self.folds
            if (values := fold.truth if layer == self.target else fold.raw) is not None
        ]

    def predicted(self, kept: Mapping[tuple[str, str], np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Give the kept predictions of the held-out units, fold by fold."""
        return [{unit: kept[fold.name, unit] for unit in self.held(fold)} for fold in self.folds]
