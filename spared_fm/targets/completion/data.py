"""What completers take and give: slides with visible entries, the panel, completed values and their spread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from spared_fm.errors import InputError
from spared_fm.targets.neighbors import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Progress = Callable[[int, int, dict[str, float]], None]
    """Told after each step: step, steps planned, figures such as ``{"loss": …}``."""

NEIGHBOURS = 18
"""Neighbours of a spot in SpaCKLE: about two rings of a hexagonal grid."""

RULES = ("spared", "prob-median")
"""Named rules of :func:`mask_probability`; a number is a share of the measured entries."""

SPARED_SHARE = 0.3  # SpaRED's mask_prob: of all entries of a gene, seen or not


@dataclass(frozen=True)
class Section:
    """One slide, everything that a method may see of it.

    Attributes
    ----------
    slide
        Its id, for messages.
    values
        ``(n, g)`` float32, visible expression (log₂(1 + TPM) or lognorm), 0 where not visible.
    visible
        ``(n, g)`` bool: the entry's value is known (measured, and not hidden).
    xy
        ``(n, 2)`` float64, spot centres, any one unit per slide.
    library
        ``(n,)`` float32, ln(1 + total visible counts over all genes).
    k
        Grid neighbours: 6 (hexagonal or unknown) or 8 (square).
    extra
        ``(n, c)`` float32 or None: optional further inputs per spot.
    unit
        ``(n, g)`` float32 or None: the value that one count would have in each entry. It depends on visible totals and the
        gene's length only, and is known for hidden and missing entries too.

    Raises
    ------
    InputError
        Arrays that do not describe the same spots and genes, values that are NaN, infinite or, where not visible, not 0.
    """

    slide: str
    values: np.ndarray
    visible: np.ndarray
    xy: np.ndarray
    library: np.ndarray
    k: int
    extra: np.ndarray | None = None
    unit: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.values)
        if len(shape) != 2 or np.shape(self.visible) != shape:
            raise InputError(f"slide {self.slide}: values {shape} and visible {np.shape(self.visible)} do not fit")
        n = shape[0]
        for name, found, wanted in (("xy", np.shape(self.xy), (n, 2)), ("library", np.shape(self.library), (n,))):
            if found != wanted:
                raise InputError(f"slide {self.slide}: {name} is {found} for {n} spots, give {wanted}")
        if self.extra is not None and (np.ndim(self.extra) != 2 or len(self.extra) != n):
            raise InputError(
                f"slide {self.slide}: extra is {np.shape(self.extra)} for {n} spots, give one row per spot"
            )
        if self.unit is not None and np.shape(self.unit) != shape:
            raise InputError(f"slide {self.slide}: unit is {np.shape(self.unit)}, values are {shape}")
        for name in ("values", "xy", "library", "extra", "unit"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise InputError(f"slide {self.slide}: {name} holds NaN or infinity; mend it or mark it as not visible")
        if np.any(np.asarray(self.values)[~np.asarray(self.visible, bool)]):
            raise InputError(f"slide {self.slide}: an entry that is not visible has a value; set it to 0")


@dataclass(frozen=True)
class Panel:
    """Genes, and for each the share of training spots in which it is measured (``(g,)`` float64, SpaRED's f_g)."""

    genes: tuple[str, ...]
    measured: np.ndarray

    def __post_init__(self) -> None:
        if np.shape(self.measured) != (len(self.genes),):
            raise InputError(f"panel: {len(self.genes)} genes, but measured is {np.shape(self.measured)}")


@dataclass(frozen=True)
class Completed:
    """A slide as a method predicts it.

    Attributes
    ----------
    values
        ``(n, g)`` float32: every entry predicted, also visible ones (:func:`fill` puts these back).
    spread
        ``(n, g)`` float32 in the unit of ``values``, like a standard deviation of a predicted entry; None where the
        method has none.
    """

    values: np.ndarray
    spread: np.ndarray | None


@runtime_checkable
class Completer(Protocol):
    """A completion method. :mod:`spared_fm.targets.completion.registry` knows them by name.

    ``fit`` is called once, with everything measured visible; methods that learn to complete hide entries themselves. It
    may choose settings on ``validate``. ``complete`` takes one slide, is deterministic, and depends on no other slide.
    ``save`` writes ``card.json`` and arrays (safetensors or npz, no pickle); ``load`` refuses the files of another panel.
    """

    name: ClassVar[str]

    def fit(
        self,
        train: Sequence[Section],
        validate: Sequence[Section],
        panel: Panel,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from the training sections; ``checkpoint`` is a folder from which a killed training goes on."""
        ...

    def complete(self, section: Section) -> Completed:
        """Predict every entry of one slide."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was fitted."""
        ...

    @classmethod
    def load(cls, folder: Path, genes: Sequence[str] | None = None) -> Self:
        """Read what was fitted, for this panel."""
        ...


def fill(section: Section, completed: Completed) -> np.ndarray:
    """Completed values with the visible ones put back, ``(n, g)`` float32; visible entries are bit-identical."""
    return np.where(section.visible, section.values, completed.values).astype(np.float32, copy=False)


def neighbours(xy: np.ndarray, n: int = NEIGHBOURS) -> np.ndarray:
    """Return the ``n`` nearest spots of each spot of one slide, nearest first.

    Parameters
    ----------
    xy
        Spot centres, ``(n_spots, 2)``; never those of two slides at once.
    n
        Neighbours wanted.

    Returns
    -------
    np.ndarray
        ``(n_spots, n)`` int64, padded with -1 where the slide has fewer spots. Equal distances go by spot index
        (:func:`spared_fm.targets.neighbors.nearest`).
    """
    index = nearest(xy, n)
    padded = np.full((len(index), n), -1, np.int64)
    padded[:, : index.shape[1]] = index
    return padded


def panel_of(train: Sequence[Section], genes: Sequence[str]) -> Panel:
    """Panel with the share of the training sections' spots in which each gene is visible.

    Raises
    ------
    InputError
        No training spot, or sections of another number of genes.
    """
    spots = sum(len(section.values) for section in train)
    if not spots:
        raise InputError("no training spot: give at least one training slide with spots")
    for section in train:
        check_genes(section, len(genes))
    seen = np.sum([section.visible.sum(axis=0) for section in train], axis=0)
    return Panel(tuple(genes), seen / spots)


def check_genes(section: Section, n_genes: int) -> None:
    """Raise :class:`InputError` where a section has another number of genes than the panel."""
    if section.values.shape[1] != n_genes:
        raise InputError(
            f"slide {section.slide} has {section.values.shape[1]} genes, the completer's panel {n_genes}:"
            " give the genes of the panel, in its order"
        )


def mask_probability(measured: np.ndarray, rule: str | float) -> np.ndarray:
    """Probability with which a measured entry of each gene is hidden.

    Parameters
    ----------
    measured
        Share f of spots in which each gene is measured, ``(g,)``, 0 to 1.
    rule
        ``"spared"``: min(1, 0.3 / f), so that 30 % of all entries of a gene are hidden (all measured ones where f is
        lower). ``"prob-median"``: min(1, (1 - f) / f), as many as are missing by nature. A number from 0 to 1: that share
        of the measured entries of every gene.

    Returns
    -------
    np.ndarray
        ``(g,)`` float64, 0 to 1.

    Raises
    ------
    InputError
        An unknown rule or a share outside 0 to 1.
    """
    share = np.asarray(measured, np.float64)
    if rule in RULES:
        wanted = np.full_like(share, SPARED_SHARE) if rule == "spared" else 1 - share
        return np.minimum(1.0, np.divide(wanted, share, out=np.ones_like(share), where=share > 0))
    if isinstance(rule, str) or not 0 <= rule <= 1:
        raise InputError(f"unknown rule {rule!r} for hiding entries: choose {', '.join(RULES)} or a share from 0 to 1")
    return np.full_like(share, float(rule))


def hide(visible: np.ndarray, probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose visible entries to hide, each on its own with the probability of its gene.

    Parameters
    ----------
    visible
        ``(n, g)`` bool.
    probability
        ``(g,)``, of :func:`mask_probability`.
    rng
        Draws one number for every entry, visible or not, so the choice for one entry depends on no other.

    Returns
    -------
    np.ndarray
        ``(n, g)`` bool, True where hidden; a subset of ``visible``.
    """
    return np.asarray(visible, bool) & (rng.random(np.shape(visible)) < probability)


def without(section: Section, hidden: np.ndarray) -> Section:
    """Section with further entries hidden, the others as they were (not normalised anew)."""
    visible = section.visible & ~hidden
    return replace(section, values=np.where(visible, section.values, np.float32(0)), visible=visible)
