"""What train, val and test of a split share and must not: patients, images, neighbouring sections, patches."""

from __future__ import annotations

import re
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.benchmark.splits import PARTS, parts_in
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["leakage", "section_of"]

_TOUCH_UM = 2e-3  # a nanometre for each centre: patches that touch don't overlap, whatever the rounding
_CAPTURE_AREA = re.compile(r"(.*V\d\d[A-Z]\d\d-\d{3}[_-])([A-D])1")  # of a Visium slide, by its serial number
_NUMBER = re.compile(r"(.*?)0*(\d{1,6})")
_LETTER = re.compile(r"(.*[^A-Za-z])([A-Za-z])")


def leakage(
    parts: Mapping[str, str | np.ndarray],
    patients: Mapping[str, str | None],
    fingerprints: Mapping[str, str | None],
    xy_um: Callable[[str], np.ndarray],
    *,
    patch_um: float,
    sections: Mapping[str, tuple[str, int] | None] | None = None,
) -> list[dict[str, Any]]:
    """Report what the parts of a split share.

    ====================  ==========================================================================================
    kind                  found when
    ====================  ==========================================================================================
    same-patient          slides of one known patient, or spots of one slide, are in several parts
    duplicate-image       two slides have the same fingerprint: a leak in different parts, counted twice in one part
    adjacent-sections     neighbours in one series of sections are in different parts
    overlapping-patches   two spots of one slide, in different parts, are nearer than a patch's width in x and in y
    ====================  ==========================================================================================

    An empty list rules out none of these where a patient, a fingerprint or a section is unknown;
    :func:`~spared_fm.benchmark.splits.check_split` warns of unknown patients.

    Parameters
    ----------
    parts
        Part of each slide, or of each of its spots, shape (n_spots,), ``""`` for none
        (:attr:`~spared_fm.benchmark.splits.Split.parts`).
    patients
        Patient of each slide, None where unknown.
    fingerprints
        Fingerprint of each slide's image, None where it has none.
    xy_um
        Gives a slide's spot centres, shape (n_spots, 2), in micrometres, in the order of its parts. Called only for
        slides whose spots are in several parts, and for slides that share an image across parts.
    patch_um
        A patch's width in micrometres.
    sections
        Series and number of each slide's section; neighbours differ by one, and None has none. By default told from
        the slides' ids by :func:`section_of`, which counts only where the patients aren't known to differ.

    Returns
    -------
    list of dict
        For each finding ``kind``; ``slides`` and ``splits``, the slides and parts it is about, lists; ``detail``
        and ``mend``, sentences. Sorted by kind, in the order of the table.

    Raises
    ------
    InputError
        A part with another name, a slide with more or fewer parts than spots, or a patch width of 0 or less.
    """
    if not patch_um > 0:
        raise InputError(f"patches {patch_um} µm wide can't be compared: give their width in micrometres")
    found = {slide: parts_in(part) for slide, part in sorted(parts.items())}
    return [
        *_same_patient(found, patients),
        *_duplicate_image(parts, found, fingerprints, xy_um, patch_um),
        *_adjacent_sections(found, patients, sections),
        *_overlapping_patches(parts, found, xy_um, patch_um),
    ]


def section_of(slide: str) -> tuple[str, int] | None:
    """Tell a section's series and its number in it from a slide's id.

    1. A Visium capture area after its slide's serial number, ``V10F24-015_B1``: series ``V10F24-015_``, A to D are
       1 to 4. Neighbouring areas often, not always, hold neighbouring sections.
    2. A number at the end, ``her2st_C2``, ``P1_H1-5``, ``A1``: what stands before it, and the number.
    3. A single letter at the end after anything that is no letter, ``brain_b``: what stands before it, and a is 1.

    Parameters
    ----------
    slide
        Slide id.

    Returns
    -------
    tuple or None
        Series (may be empty) and number; None where no rule applies.
    """
    if match := _CAPTURE_AREA.fullmatch(slide) or _LETTER.fullmatch(slide):
        return match[1], ord(match[2].lower()) - ord("a") + 1
    if match := _NUMBER.fullmatch(slide):
        return match[1], int(match[2])
    return None


def _finding(kind: str, slides: Iterable[str], splits: Iterable[str], detail: str, mend: str) -> dict[str, Any]:
    inside = set(splits)
    return {
        "kind": kind,
        "slides": sorted(slides),
        "splits": [part for part in PARTS if part in inside],
        "detail": detail,
        "mend": mend,
    }


def _same_patient(found: Mapping[str, set[str]], patients: Mapping[str, str | None]) -> list[dict[str, Any]]:
    slides_of: dict[tuple[str, str], list[str]] = {}
    for slide in found:
        unit = ("patient", patient) if (patient := patients.get(slide)) else ("slide", slide)
        slides_of.setdefault(unit, []).append(slide)
    findings = []
    for (what, name), slides in sorted(slides_of.items()):
        splits = set().union(*(found[s] for s in slides))
        if len(splits) > 1:
            whose = f"{len(slides)} slide(s) of patient {name}" if what == "patient" else f"spots of slide {name}"
            detail = f"{whose} are in {_and(splits)}"
            mend = "split by patient (--split-by patient), or claim nothing about new patients"
            findings.append(_finding("same-patient", slides, splits, detail, mend))
    return findings


def _duplicate_image(
    parts: Mapping[str, str | np.ndarray],
    found: Mapping[str, set[str]],
    fingerprints: Mapping[str, str | None],
    xy_um: Callable[[str], np.ndarray],
    patch_um: float,
) -> list[dict[str, Any]]:
    slides_of: dict[str, list[str]] = {}
    for slide in found:
        if fingerprint := fingerprints.get(slide):
            slides_of.setdefault(fingerprint, []).append(slide)
    findings = []
    for fingerprint, slides in sorted(slides_of.items(), key=lambda item: item[1]):
        if len(slides) < 2:
            continue
        splits = set().union(*(found[s] for s in slides))
        detail = f"{len(slides)} slides have the same image (fingerprint {fingerprint[:12]}), "
        if len(splits) > 1:
            placed = [_placed(s, parts[s], xy_um) for s in slides]  # one image: one frame for all their spots
            xy, part = (np.concatenate(arrays) for arrays in zip(*placed, strict=True))
            overlaps = [text for _, text in _overlaps(xy, part, patch_um)]
            detail += f"in {_and(splits)}: {'; '.join(overlaps) or 'no patches overlap'}"
        else:
            detail += f"all in {_and(splits)}: what they share counts {len(slides)} times"
        mend = "leave all but one of them out (--slides), or put them in the same split"
        findings.append(_finding("duplicate-image", slides, splits, detail, mend))
    return findings


def _adjacent_sections(
    found: Mapping[str, set[str]],
    patients: Mapping[str, str | None],
    sections: Mapping[str, tuple[str, int] | None] | None,
) -> list[dict[str, Any]]:
    series: dict[str, dict[int, list[str]]] = {}
    for slide in found:
        if place := section_of(slide) if sections is None else sections.get(slide):
            series.setdefault(place[0], {}).setdefault(place[1], []).append(slide)

    def leak(a: str, b: str) -> bool:
        whose = {patients.get(a) or None, patients.get(b) or None} - {None}
        return len(found[a] | found[b]) > 1 and (sections is not None or len(whose) < 2)

    findings = []
    for name, numbered in sorted(series.items()):
        pairs = [
            (a, b)
            for number, slides in sorted(numbered.items())
            for a, b in (*combinations(slides, 2), *product(slides, numbered.get(number + 1, ())))
            if leak(a, b)
        ]
        if not pairs:
            continue
        slides = {slide for pair in pairs for slide in pair}
        (a, b), told = pairs[0], "by their names" if sections is None else "as given"
        detail = (
            f"{len(pairs)} pair(s) of neighbouring sections of series {name!r} ({told}) are in different parts: "
            f"{a} ({_and(found[a])}) and {b} ({_and(found[b])})" + (", ..." if len(pairs) > 1 else "")
        )
        mend = "put neighbouring sections in the same split, or split by patient (--split-by patient)"
        findings.append(_finding("adjacent-sections", slides, set().union(*(found[s] for s in slides)), detail, mend))
    return findings


def _overlapping_patches(
    parts: Mapping[str, str | np.ndarray],
    found: Mapping[str, set[str]],
    xy_um: Callable[[str], np.ndarray],
    patch_um: float,
) -> list[dict[str, Any]]:
    mend = "split by section, or into blocks with a buffer of a patch's width or more (--split-by block)"
    return [
        _finding("overlapping-patches", [slide], splits, f"slide {slide}: {text}", mend)
        for slide in found
        if len(found[slide]) > 1
        for splits, text in _overlaps(*_placed(slide, parts[slide], xy_um), patch_um)
    ]


def _placed(slide: str, part: str | np.ndarray, xy_um: Callable[[str], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return a slide's spot centres and the part of each."""
    xy = np.asarray(xy_um(slide), dtype=float)
    part = np.full(len(xy), part) if isinstance(part, str) else part
    if len(part) != len(xy):
        raise InputError(f"slide {slide} has {len(xy)} spots, but its split has {len(part)}: give one part per spot")
    return xy, part


def _overlaps(xy: np.ndarray, part: np.ndarray, patch_um: float) -> list[tuple[list[str], str]]:
    """Count, for each two parts, the spots of the later one whose patch overlaps one of the earlier."""
    from scipy.spatial import cKDTree

    found: list[tuple[list[str], str]] = []
    for a, b in combinations(PARTS, 2):
        of_a, of_b = xy[part == a], xy[part == b]
        if not (len(of_a) and len(of_b)):
            continue
        # patches are upright squares: Chebyshev's distance. Unbalanced, as bins share most of their coordinates
        tree = cKDTree(of_a, balanced_tree=False, compact_nodes=False)
        nearest, _ = tree.query(of_b, p=np.inf, distance_upper_bound=patch_um)
        if n := int(np.count_nonzero(nearest < patch_um - _TOUCH_UM)):
            found.append(([a, b], f"the patches of {n} of {len(of_b)} {b} spots overlap patches of {a} spots"))
    return found


def _and(splits: Iterable[str]) -> str:
    """Join parts' names: train, val and test."""
    inside = [part for part in PARTS if part in set(splits)]
    return " and ".join([", ".join(inside[:-1]), inside[-1]] if len(inside) > 1 else inside)
