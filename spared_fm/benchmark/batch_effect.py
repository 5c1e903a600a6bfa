"""How much of slide, patient and centre an encoder's vectors show: a gate to read beside PCC.

An encoder that knows where a patch was stained and scanned can score well where these go with expression, and fail on
the next centre. Two kinds of rows, neither of which needs expression:

* **Probes**: is the class (slide, patient, centre) predicted on spots held out? Logistic regression and the k nearest
  neighbours (cosine), balanced accuracy against chance, and ``excess`` = (accuracy − chance) / (1 − chance): 0 shows
  nothing, 1 all. Held out is a ``"block"`` of each slide, at least the buffer away from the rest; and, where each class has two
  or more of them, whole slides (for patients) or whole patients (for centres), half of each class's: a class that is still
  found then is known by more than the look of the very slides.
* **Robustness index** of PathoROB (arXiv 2507.17845, after arXiv 2501.18055): of the k nearest neighbours (cosine) of all
  spots, SO / (SO + OS), SO being those of the same tissue label and another class, OS of another label and the same class.
  1: the label decides, 0: the class does. Needs a tissue label for each spot, two or more labels and classes. As in
  PathoROB, neighbours from the spot's own slide are left out where the class is patient or centre. k is given here;
  PathoROB takes the one that predicts the label best.

High probe rows with few patients are no verdict: patients differ in biology too.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.benchmark.splits import spatial_blocks
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    Labels = NDArray[np.str_]

FACTORS = ("slide", "patient", "centre")
_HELD_OUT = {"patient": "slide", "centre": "patient"}
"""What is held out whole to ask for a class, besides blocks."""


def batch_effect(
    X: Mapping[str, ArrayLike],
    coords_um: Mapping[str, ArrayLike],
    *,
    patients: Mapping[str, str | None] | None = None,
    centres: Mapping[str, str | None] | None = None,
    tissue: Mapping[str, ArrayLike] | None = None,
    k: int = 20,
    buffer_um: float = 224.0,
    spots_per_slide: int = 500,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Probe one encoder's vectors for slide, patient and centre.

    Parameters
    ----------
    X
        Vectors (spots, dim) of each slide. Rows of NaN (patches that could not be read) are left out.
    coords_um
        Spot centres (spots, 2) in micrometres.
    patients, centres
        Of each slide. A factor that is not known for every slide, or has one class, gives no rows.
    tissue
        (spots,) tissue labels of each slide, for the robustness index; empty where unknown.
    k
        Neighbours, of the probe and of the index.
    buffer_um
        Least distance of held-out spots from those fitted on; two patches' widths by default.
    spots_per_slide
        Spots drawn of each slide, so that large slides neither rule nor take long.
    seed
        Of the draws.

    Returns
    -------
    list of dict
        ``factor`` (slide, patient, centre), ``held_out`` (block, slide, patient), ``probe`` (logistic, knn, robustness_index),
        ``value`` (balanced accuracy, or the index), ``chance`` and ``excess`` (None for the index), ``n_classes`` and
        ``n_spots`` (scored).

    Raises
    ------
    InputError
        No or one slide, arrays that do not match, slides too small for a held-out block, or k below 1.
    """
    if len(X) < 2:
        raise InputError(f"{len(X)} slide(s) show no batch effect: give two or more")
    if k < 1 or spots_per_slide < 2:
        raise InputError(f"k = {k} neighbours of {spots_per_slide} spots a slide can't be probed: give 1 and 2 or more")
    rng = np.random.default_rng(seed)
    vectors, slide, held, label = [], [], [], []
    for name in sorted(X):
        x, xy = np.asarray(X[name]), np.asarray(coords_um.get(name, ()))
        tissue_of = np.full(len(x), "") if tissue is None else np.asarray(tissue.get(name, ())).astype(np.str_)
        if x.ndim != 2 or xy.shape != (len(x), 2) or len(tissue_of) != len(x):
            raise InputError(
                f"slide {name} has vectors of shape {x.shape}, centres {xy.shape} and {len(tissue_of)} tissue labels: "
                "give one of each for every spot"
            )
        part = spatial_blocks(xy, shares=(0.7, 0.0, 0.3), buffer_um=buffer_um, seed=seed)
        there = np.isfinite(x).all(axis=1)
        shares = {"train": spots_per_slide * 7 // 10, "test": spots_per_slide - spots_per_slide * 7 // 10}
        drawn = [rng.permutation(np.flatnonzero(there & (part == p)))[:n] for p, n in shares.items()]
        if not all(map(len, drawn)):
            raise InputError(f"slide {name} has no spots with vectors on one side of the buffer: leave the slide out")
        rows = np.concatenate(drawn)
        vectors.append(x[rows].astype(np.float32))
        slide.append(np.full(len(rows), name))
        held.append(part[rows])
        label.append(tissue_of[rows])
    x, slides, parts, labels = (np.concatenate(a) for a in (vectors, slide, held, label))
    rows_of = _classes(slides, patients, centres)
    found = []
    for factor, classes in rows_of.items():
        found += _probes(x, classes, parts == "train", parts == "test", factor, "block", k)
        group = _HELD_OUT.get(factor, "")
        if group in rows_of and (out := _half(classes, rows_of[group], rng)) is not None:
            found += _probes(x, classes, ~out, out, factor, group, k)
        if tissue is not None:
            found += robustness_index(x, classes, labels, None if factor == "slide" else slides, factor=factor, k=k)
    return found


def robustness_index(
    X: ArrayLike,
    classes: ArrayLike,
    tissue: ArrayLike,
    slides: ArrayLike | None = None,
    *,
    factor: str = "slide",
    k: int = 20,
) -> list[dict[str, Any]]:
    """Return PathoROB's robustness index as a row, or none where it is not defined (see the module's text).

    Parameters
    ----------
    X
        (spots, dim) vectors.
    classes, tissue
        (spots,) labels: what is confounding, and the biology. Spots whose tissue is empty are left out.
    slides
        (spots,) labels; neighbours of the own slide are then left out, and spots whose class is on no other slide
        (all their neighbours are of another class, whatever the encoder shows).
    factor
        Name of the classes in the row.
    k
        Neighbours of each spot.
    """
    known = np.flatnonzero(np.asarray(tissue).astype(np.str_) != "")
    x, batch, bio = _unit(np.asarray(X)[known]), np.asarray(classes)[known], np.asarray(tissue)[known]
    if len(np.unique(batch)) < 2 or len(np.unique(bio)) < 2:
        return []
    place = np.arange(len(known)) if slides is None else np.unique(np.asarray(slides)[known], return_inverse=True)[1]
    several = [c for c in np.unique(batch) if len(np.unique(place[batch == c])) > 1]
    asked = np.flatnonzero(np.isin(batch, several))
    k = min(k, len(known) - int(np.bincount(place).max()))
    so = os = 0
    for start in range(0, len(asked), 1024):
        rows = asked[start : start + 1024]
        alike = x[rows] @ x.T
        alike[place[rows][:, None] == place] = -np.inf  # the spot itself, or its whole slide
        near = np.argpartition(-alike, k - 1, axis=1)[:, :k]
        same_bio, same_batch = bio[near] == bio[rows, None], batch[near] == batch[rows, None]
        so += int((same_bio & ~same_batch).sum())
        os += int((~same_bio & same_batch).sum())
    if so + os == 0:
        return []
    return [
        _row(factor, "slide" if slides is not None else None, "robustness_index", so / (so + os), batch, len(asked))
    ]


def _classes(
    slides: Labels, patients: Mapping[str, str | None] | None, centres: Mapping[str, str | None] | None
) -> dict[str, Labels]:
    """Return the class of each spot by factor, of the factors that are known for every slide and have two classes."""
    found = {}
    for factor, of in zip(FACTORS, ({s: s for s in slides}, patients or {}, centres or {}), strict=True):
        names, row = np.unique(slides, return_inverse=True)
        each = np.array([of.get(str(s)) or "" for s in names])
        if (each != "").all() and len(np.unique(each)) > 1:
            found[factor] = each[row]
    return found


def _half(classes: Labels, groups: Labels, rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """Return the spots of half of each class's groups, drawn at random; None where a class has a single one."""
    chosen: list[str] = []
    for name in np.unique(classes):
        own = np.unique(groups[classes == name])
        if len(own) < 2:
            return None
        chosen += list(rng.permutation(own)[: len(own) // 2])
    out: NDArray[np.bool_] = np.isin(groups, chosen)
    return out


def _probes(
    x: NDArray[np.float32],
    classes: Labels,
    fit: NDArray[np.bool_],
    held: NDArray[np.bool_],
    factor: str,
    held_out: str,
    k: int,
) -> list[dict[str, Any]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x[fit])
    models = {
        "logistic": (LogisticRegression(C=0.1, class_weight="balanced", max_iter=200, tol=1e-3), scaler.transform(x)),
        "knn": (KNeighborsClassifier(min(k, int(fit.sum()))), _unit(x)),
    }
    rows = []
    for probe, (model, given) in models.items():
        with warnings.catch_warnings():
            # the accuracy is settled long before the weights of a problem that is separable
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(given[fit], classes[fit])
        accuracy = balanced_accuracy_score(classes[held], model.predict(given[held]))
        rows.append(_row(factor, held_out, probe, float(accuracy), classes, int(held.sum())))
    return rows


def _row(factor: str, held_out: str | None, probe: str, value: float, classes: Labels, n_spots: int) -> dict[str, Any]:
    n = len(np.unique(classes))
    index = probe == "robustness_index"
    return {
        "factor": factor,
        "held_out": held_out,
        "probe": probe,
        "value": value,
        "chance": None if index else 1 / n,
        "excess": None if index else (value - 1 / n) / (1 - 1 / n),
        "n_classes": n,
        "n_spots": n_spots,
    }


def _unit(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows of length one, so that Euclid's neighbours are those of the cosine."""
    unit: NDArray[np.float32] = x.astype(np.float32)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(length > 0, length, 1)
    return unit
