"""Splits of slides into train, val and test that keep every patient on one side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


def split_by(
    slides: Iterable[str],
    patients: Mapping[str, str | None],
    by: Literal["patient", "slide"],
    seed: int = 0,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
) -> dict[str, Part]:
    """Split slides at random, the same way every time for the same slides and seed.

    Parameters
    ----------
    slides
        Slide ids; their order does not matter.
    patients
        Patient of each slide; needed for every slide when ``by="patient"``.
    by
        ``"patient"``: patients are drawn, with all their slides. ``"slide"``: slides are drawn; sections of
        one patient may then fall on both sides, which :func:`check_split` warns of.
    seed
        Of the draw.
    fractions
        Shares of train, val and test among the patients (or slides). Test and train get at least one each,
        val gets at least one when its share is above 0 and there are three or more.

    Returns
    -------
    dict
        ``"train"``, ``"val"`` or ``"test"`` for each slide, in sorted order.

    Raises
    ------
    InputError
        Fewer than two patients (or slides), a slide whose patient is not known, or bad fractions.
    """
    names = sorted(set(slides))
    if by not in ("patient", "slide"):
        raise InputError(f"can't split by {by!r}: use 'patient' or 'slide'")
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise InputError(f"split fractions are {list(fractions)}: give shares of train, val, test, none below 0")
    if by == "patient" and (unknown := [s for s in names if not patients.get(s)]):
        raise InputError(f"no patient is known for {_some(unknown)}: ingest with --patient, or split by slide")
    unit_of = {s: str(patients[s]) if by == "patient" else s for s in names}
    units = sorted(set(unit_of.values()))
    if len(units) < 2:
        mend = "add one, or split by slide" if by == "patient" and len(names) > 1 else "add one"
        raise InputError(f"{len(units)} {by}(s) can't be split into train and test: {mend}")

    shares = shares / shares.sum()
    n = len(units)
    test = min(max(1, round(shares[2] * n)), n - 1)
    val = min(max(1, round(shares[1] * n)), n - 1 - test) if shares[1] > 0 and n > 2 else 0
    order = np.random.default_rng(seed).permutation(n)
    part_of = {units[u]: PARTS[2 if i < test else 1 if i < test + val else 0] for i, u in enumerate(order)}
    return {s: part_of[unit_of[s]] for s in names}


def check_split(split: Mapping[str, str], patients: Mapping[str, str | None]) -> list[str]:
    """Return what a reader of the scores must know about a split.

    Parameters
    ----------
    split
        ``"train"``, ``"val"`` or ``"test"`` for each slide.
    patients
        Patient of each slide, None where unknown.

    Returns
    -------
    list of str
        One line for each patient found in several parts, and one if patients are unknown. Empty: nothing to
        warn of.

    Raises
    ------
    InputError
        A part with another name, no train slide, or no slide that is held out.
    """
    if odd := {s: p for s, p in split.items() if p not in PARTS}:
        raise InputError(f"unknown split {next(iter(odd.values()))!r} of {_some(odd)}: use {', '.join(PARTS)}")
    if "train" not in split.values():
        raise InputError("no slide is in the train split: give one with --split train")
    if not set(split.values()) - {"train"}:
        raise InputError("every slide is in the train split: hold one out with --split test")
    parts: dict[str, set[str]] = {}
    for slide, part in split.items():
        if patient := patients.get(slide):
            parts.setdefault(patient, set()).add(part)
    warnings = [
        f"patient {patient} is in {' and '.join(p for p in PARTS if p in found)}: scores say little about new patients"
        for patient, found in sorted(parts.items())
        if len(found) > 1
    ]
    if unknown := sorted(s for s in split if not patients.get(s)):
        warnings.append(f"the patient of {_some(unknown)} is unknown: a leak between splits can't be ruled out")
    return warnings


def _some(names: Iterable[str]) -> str:
    """Return up to five names, and how many more."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
