"""Splits into train, val and test: by patient where patients are known, else by section, else by spatial block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["PARTS", "Split", "check_split", "choose_split", "parts_in", "spatial_blocks", "split_by", "split_label"]

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

_KNOWN_PATIENTS = 3  # one for each part


@dataclass(frozen=True)
class Split:
    """A split and what a score on it says.

    Attributes
    ----------
    parts
        Of each slide, in sorted order: ``"train"``, ``"val"`` or ``"test"``; or for a slide that is divided, an
        array of shape (n_spots,) of these, ``""`` for a spot in the buffer, which belongs to no part.
    by
        ``"patient"``, ``"section"`` or ``"block"``.
    label
        A sentence: what a score on this split says.
    """

    parts: dict[str, str | np.ndarray]
    by: str
    label: str


def choose_split(
    slides: Sequence[str],
    patients: Mapping[str, str | None],
    xy_um: Callable[[str], np.ndarray],
    *,
    by: str | None = None,
    seed: int = 0,
    buffer_um: float,
) -> Split:
    """Split by patient where at least three are known, else by section, else one slide into spatial blocks.

    Parameters
    ----------
    slides
        Slide ids; their order does not matter.
    patients
        Patient of each slide, None where unknown.
    xy_um
        Gives a slide's spot centres, shape (n_spots, 2), in micrometres. Called for spatial blocks only.
    by
        ``"patient"``, ``"section"`` (or ``"slide"``, the same) or ``"block"`` forces one. ``"block"`` divides every
        slide, each by a draw of its own that does not depend on the other slides.
    seed
        Of the draw.
    buffer_um
        Least distance between the centres of spots of different parts, see :func:`spatial_blocks`. Twice the
        patch's width keeps one whole patch free between the patches of two parts.

    Returns
    -------
    Split
        Shares of train, val and test near 0.6, 0.2, 0.2; no val with fewer than three patients (or sections).

    Raises
    ------
    InputError
        No slide, fewer than two patients or sections to split by, a slide whose patient is unknown in a split by
        patient, a slide too small for blocks, or an unknown ``by``.
    """
    names = sorted(set(slides))
    if not names:
        raise InputError("no slide to split: ingest some first, or check --slides")
    if by is None:
        known = {patients[s] for s in names if patients.get(s)}
        by = "patient" if len(known) >= _KNOWN_PATIENTS else "section" if len(names) > 1 else "block"
    by = "section" if by == "slide" else by
    parts: dict[str, str | np.ndarray] = {}
    if by == "block":
        for slide in names:
            try:
                parts[slide] = spatial_blocks(xy_um(slide), buffer_um=buffer_um, seed=crc32(slide.encode()) + seed)
            except InputError as error:
                raise InputError(f"slide {slide}: {error}") from None
    elif by in ("patient", "section"):
        parts.update(split_by(names, patients, "patient" if by == "patient" else "slide", seed))
    else:
        raise InputError(f"can't split by {by!r}: use patient, section (or slide) or block")
    return Split(parts, by, split_label(parts, patients, by))


def split_label(parts: Mapping[str, str | np.ndarray], patients: Mapping[str, str | None], by: str) -> str:
    """Say in a sentence what a score on a split says: the least that holds for all its slides.

    Parameters
    ----------
    parts
        Part of each slide, or of each of its spots (:attr:`Split.parts`).
    patients
        Patient of each slide, None where unknown.
    by
        ``"patient"``, ``"section"``, ``"block"`` or ``"given"``: how the split came about. What is said about the
        score follows from the parts and the patients alone.

    Returns
    -------
    str
        One sentence.
    """
    how = {"patient": "Split by patient", "section": "Split by section", "block": "Split into spatial blocks"}
    found = {slide: parts_in(part) for slide, part in parts.items()}
    of_patient = _of_patients(found, patients)
    shared = sorted(p for p, inside in of_patient.items() if len(inside) > 1)
    unknown = sorted(s for s in found if not patients.get(s))
    if any(len(inside) > 1 for inside in found.values()):
        says = (
            "spots of one slide are in several parts: a held-out score says how well the rest of a seen section is "
            "predicted, not another section or a new patient"
        )
    elif shared:
        says = (
            f"sections of the same patient ({_some(shared)}) are in several parts: a held-out score says how well "
            "another section of a seen patient is predicted, not a new patient"
        )
    elif unknown:
        says = (
            f"the patient of {_some(unknown)} is unknown: a held-out score says how well another section is "
            "predicted, perhaps of a seen patient"
        )
    else:
        held_out = sum("train" not in inside for inside in of_patient.values())
        says = (
            "no patient is in two parts: a held-out score says how well new patients are predicted "
            f"({held_out} of {len(of_patient)} are held out)"
        )
    return f"{how.get(by, 'Split as given')}; {says}."


def spatial_blocks(
    xy_um: np.ndarray,
    *,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    buffer_um: float,
    seed: int = 0,
) -> np.ndarray:
    """Divide one slide into one rectangular block for each part, with an empty strip between them.

    A straight cut along x or y divides one part's block from the others', a second one the other two; which part
    comes first and on which side is drawn. Spots in the strip right after a cut belong to no part. Of all cuts
    along an axis the one is taken whose shares of the spots that are kept are nearest those asked for, and of the
    two axes the one with the smaller sum of this error and the share of spots lost. Distances are Chebyshev's (the
    larger of the differences in x and in y), as patches are upright squares: patches overlap when their centres are nearer
    than a patch's width, so a buffer of one width keeps patches apart, and one of two widths leaves a strip one
    whole patch wide between them. A spot's part depends on the set of centres alone, not on their order.

    Parameters
    ----------
    xy_um
        Spot centres, shape (n_spots, 2), in micrometres; rounded to a nanometre.
    shares
        Of train, val and test. A part whose share is 0 gets no block; train and one other must be above 0.
    buffer_um
        Least distance between the centres of spots of different parts, above 0.
    seed
        Of the draw, 0 or more.

    Returns
    -------
    numpy.ndarray
        Shape (n_spots,), dtype ``<U5``: ``"train"``, ``"val"``, ``"test"``, or ``""`` in the buffer. Every part
        with a share has a spot at least.

    Raises
    ------
    InputError
        Too few spots, or too close together, for every part to get one (always so with fewer spots than parts);
        centres that are not finite; bad shares or buffer.
    """
    xy = np.asarray(xy_um, dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise InputError(f"spot centres of shape {xy.shape} can't be divided: give finite x and y for each spot")
    if not (np.isfinite(buffer_um) and buffer_um > 0):
        raise InputError(f"a buffer of {buffer_um} µm keeps no patches apart: give one patch's width or more")
    wanted = _shares(shares)
    if wanted[0] == 0 or wanted[1:].sum() == 0:
        raise InputError(f"split shares are {list(shares)}: train and val or test must be above 0")
    nm = np.rint(xy * 1000).astype(np.int64)  # whole numbers, so that a shift or rounding noise moves no spot
    buffer = max(1, round(buffer_um * 1000))
    rng = np.random.default_rng(seed)
    order = [int(p) for p in rng.permutation(3) if wanted[p] > 0]
    blocks = np.full(len(nm), "", dtype="<U5")
    rows = np.arange(len(nm))
    for i, part in enumerate(order[:-1]):
        share = wanted[part] / wanted[order[i:]].sum()
        side = int(rng.choice((-1, 1)))
        cuts: list[tuple[float, np.ndarray, np.ndarray]] = []
        for sign in (side, -side):  # the side that was drawn may leave no room for the other parts
            cuts = cuts or [
                cut for a in (0, 1) if (cut := _cut(sign * nm[rows, a], nm[rows, 1 - a], share, buffer, len(order) - i))
            ]
        if not cuts:
            width, height = np.ptp(xy, axis=0) if len(xy) else (0, 0)
            raise InputError(
                f"{len(xy)} spot(s) over {width:.0f} x {height:.0f} µm leave no room for {len(order)} blocks "
                f"{buffer_um:g} µm apart: give a split, or leave the slide out with --slides"
            )
        _, near, far = min(cuts, key=lambda cut: cut[0])
        blocks[rows[near]] = PARTS[part]
        rows = rows[far]
    blocks[rows] = PARTS[order[-1]]
    return blocks


def _cut(
    along: np.ndarray, across: np.ndarray, share: float, buffer: int, n_parts: int
) -> tuple[float, np.ndarray, np.ndarray] | None:
    """Cut one block off the low end of an axis: (error + share lost, its rows, rows beyond the buffer), if it can be.

    The rows beyond must have room for ``n_parts - 1`` blocks: two need an extent of the buffer in one direction.
    """
    if not len(along):
        return None
    order = np.argsort(along, kind="stable")
    u, v = along[order], across[order]
    values, first = np.unique(u, return_index=True)
    kept_low = np.append(first[1:], len(u))  # rows up to each value, all of one value on the same side
    start = np.searchsorted(u, values + buffer)
    possible = start < len(u)
    if n_parts > 2:
        top, bottom = np.maximum.accumulate(v[::-1])[::-1], np.minimum.accumulate(v[::-1])[::-1]
        at = np.minimum(start, len(u) - 1)
        possible &= np.maximum(u[-1] - u[at], top[at] - bottom[at]) >= buffer
    if not possible.any():
        return None
    kept = kept_low + len(u) - start
    error = np.where(possible, np.abs(kept_low / kept - share), np.inf)
    best = int(np.argmin(error))
    score = float(error[best] + 1 - kept[best] / len(u))
    return score, order[: kept_low[best]], order[start[best] :]


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
    shares = _shares(fractions)
    if by == "patient" and (unknown := [s for s in names if not patients.get(s)]):
        raise InputError(f"no patient is known for {_some(unknown)}: ingest with --patient, or split by slide")
    unit_of = {s: str(patients[s]) if by == "patient" else s for s in names}
    units = sorted(set(unit_of.values()))
    if len(units) < 2:
        other = {0: "", 1: ", or split by block"}.get(len(names), ", or split by slide")
        mend = f"add one{other}"
        raise InputError(f"{len(units)} {by}(s) can't be split into train and test: {mend}")

    n = len(units)
    test = min(max(1, round(shares[2] * n)), n - 1)
    val = min(max(1, round(shares[1] * n)), n - 1 - test) if shares[1] > 0 and n > 2 else 0
    order = np.random.default_rng(seed).permutation(n)
    part_of = {units[u]: PARTS[2 if i < test else 1 if i < test + val else 0] for i, u in enumerate(order)}
    return {s: part_of[unit_of[s]] for s in names}


def check_split(split: Mapping[str, str | np.ndarray], patients: Mapping[str, str | None]) -> list[str]:
    """Return what a reader of the scores must know about a split.

    Parameters
    ----------
    split
        ``"train"``, ``"val"`` or ``"test"`` for each slide or each of its spots (:attr:`Split.parts`).
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
        A part with another name, nothing to train on, or nothing that is held out.
    """
    found: dict[str, set[str]] = {}
    for slide, part in split.items():
        try:
            found[slide] = parts_in(part)
        except InputError as error:
            raise InputError(f"slide {slide}: {error}") from None
    everywhere = set().union(*found.values())
    if "train" not in everywhere:
        raise InputError("no slide is in the train split: give one with --split train")
    if not everywhere - {"train"}:
        raise InputError("every slide is in the train split: hold one out with --split test")
    warnings = [
        f"patient {patient} is in {' and '.join(p for p in PARTS if p in inside)}: scores say little about new patients"
        for patient, inside in sorted(_of_patients(found, patients).items())
        if len(inside) > 1
    ]
    if unknown := sorted(s for s in split if not patients.get(s)):
        warnings.append(f"the patient of {_some(unknown)} is unknown: a leak between splits can't be ruled out")
    return warnings


def parts_in(part: str | np.ndarray) -> set[str]:
    """Return the parts a slide has spots in: of its one part, or of an array of its spots' (``""`` is none).

    Raises
    ------
    InputError
        Another name than ``train``, ``val``, ``test``.
    """
    if isinstance(part, str):
        found, odd = {part}, part not in PARTS
    else:
        counts = {p: int(np.count_nonzero(part == p)) for p in (*PARTS, "")}
        found, odd = {p for p in PARTS if counts[p]}, sum(counts.values()) < len(part)
    if odd:
        name = part if isinstance(part, str) else next(p for p in part if p not in (*PARTS, ""))
        raise InputError(f"unknown split {str(name)!r}: use {', '.join(PARTS)}")
    return found


def _of_patients(found: Mapping[str, set[str]], patients: Mapping[str, str | None]) -> dict[str, set[str]]:
    """Return the parts each known patient has slides in."""
    parts: dict[str, set[str]] = {}
    for slide, inside in found.items():
        if patient := patients.get(slide):
            parts.setdefault(patient, set()).update(inside)
    return parts


def _shares(fractions: Sequence[float]) -> np.ndarray:
    """Check shares of train, val and test, and make their sum 1."""
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise InputError(f"split fractions are {list(fractions)}: give shares of train, val, test, none below 0")
    return shares / shares.sum()


def _some(names: Iterable[str]) -> str:
    """Return up to five names, and how many more."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
