"""The split of a cohort: given, known from ingest or drawn; what it shares between its parts; and its units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spared_fm.benchmark.leakage import leakage
from spared_fm.benchmark.splits import PARTS, Split, check_split, choose_split, parts_in, split_label
from spared_fm.errors import InputError
from spared_fm.slides.patches import PatchSpec
from spared_fm.store.nodes import read_elem, read_index

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spared_fm.store.layout import Layout

PATCH_UM = PatchSpec().um
BUFFER_UM = 2 * PATCH_UM
"""Least distance of spots of different blocks of a slide: between the patches of two blocks there is room for one more."""


def split_slides(
    layout: Layout,
    records: Mapping[str, dict[str, Any]],
    split: Mapping[str, str] | str | Path | None,
    split_by: str | None,
    seed: int,
) -> Split:
    """Find or draw the split of a cohort; arguments as for :func:`spared_fm.study.cohort.cohort`.

    Raises
    ------
    InputError
        A slide without a part, a part for a slide that is not in the cohort, no part to train on or to hold out, or a split that
        cannot be drawn.
    """
    if split is not None and split_by is not None:
        raise InputError("--split and --split-by exclude each other; give one")
    patients = {slide: record["patient"] for slide, record in records.items()}
    known = {slide: record["split"] for slide, record in records.items()}
    if split is None and (split_by is not None or not any(known.values())):
        if split_by not in (None, "patient", "slide", "section", "block"):
            raise InputError(f"--split-by {split_by!r} is not patient, slide, section or block")
        return choose_split(
            list(records), patients, _places(layout, records), by=split_by, seed=seed, buffer_um=BUFFER_UM
        )
    parts = known if split is None else _named(records, split)
    without = [slide for slide, part in parts.items() if part is None]
    if without:
        raise InputError(
            f"slide {without[0]} has no split ({len(without)} of {len(parts)} have none); give --split FILE, "
            "--split-by patient|slide|block, or ingest it again with --split"
        )
    check_split(parts, patients)
    return Split(dict(parts), "given", split_label(parts, patients, "given"))


def check_leaks(
    layout: Layout, records: Mapping[str, dict[str, Any]], split: Split
) -> tuple[list[dict[str, Any]], list[str]]:
    """Find what the parts of a split share, and say it as warnings."""
    patients = {slide: record["patient"] for slide, record in records.items()}
    fingerprints = {slide: record["fingerprint"] for slide, record in records.items()}
    found = leakage(split.parts, patients, fingerprints, _places(layout, records), patch_um=PATCH_UM)
    told = [f"{one['detail']}: {one['mend']}" for one in found if one["kind"] != "same-patient"]
    return found, [*check_split(split.parts, patients), *told]


def part_name(part: str | np.ndarray) -> str:
    """Part of a slide, or the parts of a divided one joined by ``+``, as in ``train+test``."""
    inside = parts_in(part)
    return "+".join(name for name in PARTS if name in inside)


def units(obs: pd.DataFrame, slides: Mapping[str, str]) -> dict[str, tuple[str, str, np.ndarray]]:
    """Stretches of a cohort that are fitted or scored as one: a slide, or a part of a divided one.

    Parameters
    ----------
    obs
        ``obs`` of the cohort.
    slides
        Slide → part as in :func:`part_name` (``split`` of the cohort's record).

    Returns
    -------
    dict
        Name (the slide's, for a part of one ``<slide>/<part>``) → slide, part, row numbers in the cohort.
    """
    of, part = obs["slide"].to_numpy(), obs["split"].to_numpy()
    found = {}
    for slide, whole in slides.items():
        rows = np.flatnonzero(of == slide)
        inside = whole.split("+")
        for one in inside:
            name = slide if len(inside) == 1 else f"{slide}/{one}"
            found[name] = slide, one, rows if len(inside) == 1 else rows[part[rows] == one]
    return found


def spot_positions(layout: Layout, cohort: str, slide: str, barcodes: np.ndarray) -> np.ndarray:
    """Find spots of a cohort in their slide, by barcode.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name, for the message.
    slide
        Slide id.
    barcodes
        Barcodes of spots, (n,).

    Returns
    -------
    np.ndarray
        Row numbers in the slide, (n,), int64.

    Raises
    ------
    InputError
        The slide lacks a spot.
    """
    positions = pd.Index(read_index(layout, f"{layout.slide(slide)}/obs")).get_indexer(barcodes)
    if (positions < 0).any():
        lost = barcodes[np.argmax(positions < 0)]
        raise InputError(f"cohort {cohort!r}: spot {slide}/{lost} is no longer in the store; build the cohort again")
    return positions


def _places(layout: Layout, records: Mapping[str, dict[str, Any]]) -> Callable[[str], np.ndarray]:
    def xy_um(slide: str) -> np.ndarray:
        record = records[slide]
        if record["spots_digest"] is None or not record["mpp"]:
            raise InputError(
                f"slide {slide}: its spots have no places in micrometres; ingest it with --mpp, or give --split FILE"
            )
        xy = np.asarray(read_elem(layout, f"{layout.slide(slide)}/obsm/spatial"), np.float64)[:, :2]
        return xy * float(record["mpp"])

    return xy_um


def _named(records: Mapping[str, dict[str, Any]], split: Mapping[str, str] | str | Path) -> dict[str, str]:
    named = dict(_read_split(split)) if isinstance(split, str | Path) else dict(split)
    unknown = sorted(named.keys() - records.keys())
    if unknown:
        raise InputError(
            f"the split names slide {unknown[0]!r}, which is not in the cohort; check its spelling or --slides"
        )
    without = [slide for slide in records if slide not in named]
    if without:
        raise InputError(
            f"the split says nothing about slide {without[0]}; add it, or leave the slide out with --slides"
        )
    return {slide: named[slide] for slide in records}


def _read_split(path: str | Path) -> dict[str, str]:
    try:
        table = pd.read_csv(path, dtype=str)
        return dict(zip(table["slide"], table["split"], strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: no such split file; it is a CSV with the columns slide, split") from None
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV with the columns slide, split ({error})") from error
