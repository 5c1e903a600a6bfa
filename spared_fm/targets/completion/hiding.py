"""Hide entries of raw counts first, then normalise what stays visible."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from spared_fm.errors import InputError
from spared_fm.targets.completion.data import Section

LAYERS = ("log1p", "lognorm")
"""log₂(1 + TPM), and ln(1 + counts per 10⁴)."""


@dataclass(frozen=True)
class Counts:
    """Raw counts of the panel on one slide, and what the genes outside the panel add to its normalisation.

    Attributes
    ----------
    slide, split
        Its id, and ``train``, ``val`` or ``test``.
    counts
        ``(n, g)`` raw counts of the panel genes.
    rest_counts
        ``(n,)`` total counts of all other genes.
    rest_per_base
        ``(n,)`` float64, Σ counts / length over the kept genes outside the panel.
    lengths
        ``(g,)`` gene lengths in bases.
    xy
        ``(n, 2)`` spot centres.
    k
        Grid neighbours, 6 or 8.
    """

    slide: str
    split: str
    counts: np.ndarray
    rest_counts: np.ndarray
    rest_per_base: np.ndarray
    lengths: np.ndarray
    xy: np.ndarray
    k: int

    def __post_init__(self) -> None:
        n, g = np.shape(self.counts)
        for name, wanted in (("rest_counts", (n,)), ("rest_per_base", (n,)), ("lengths", (g,)), ("xy", (n, 2))):
            if np.shape(getattr(self, name)) != wanted:
                raise InputError(f"slide {self.slide}: {name} is {np.shape(getattr(self, name))}, not {wanted}")
        if not np.isfinite(self.counts).all() or np.min(self.counts, initial=0) < 0:
            raise InputError(f"slide {self.slide} has negative, NaN or infinite counts: raw counts are needed")


def section(raw: Counts, hidden: np.ndarray | None = None, layer: str = "log1p") -> Section:
    """Slide as a method sees it: hidden counts are set to 0, then totals and scale are taken from what is left.

    Nothing in it depends on a hidden count, bit for bit. Which spots and genes there are was decided before.

    Parameters
    ----------
    raw
        Raw counts.
    hidden
        ``(n, g)`` bool; None hides nothing.
    layer
        One of :data:`LAYERS`.

    Returns
    -------
    Section
    """
    seen = visible_counts(raw, hidden)
    factor = scale(raw, seen, layer)
    return Section(
        slide=raw.slide,
        values=normalise(seen, factor, raw.lengths, layer).astype(np.float32),
        visible=seen > 0,
        xy=np.asarray(raw.xy, np.float64),
        library=np.log1p(seen.sum(axis=1) + raw.rest_counts).astype(np.float32),
        k=raw.k,
        unit=normalise(np.ones_like(seen), factor, raw.lengths, layer).astype(np.float32),
    )


def truth(raw: Counts, hidden: np.ndarray | None = None, layer: str = "log1p") -> np.ndarray:
    """Values that all counts, also hidden ones, have under the scale of what stays visible.

    Returns
    -------
    np.ndarray
        ``(n, g)`` float64 in the unit that methods work in; NaN for spots of which nothing stays visible (they have no
        scale). With ``hidden=None``: the ordinary values, normalised at full depth.
    """
    factor = scale(raw, visible_counts(raw, hidden), layer)
    values = normalise(np.asarray(raw.counts, np.float64), factor, raw.lengths, layer)
    values[factor == 0] = np.nan
    return values


def _log2p(x: np.ndarray) -> np.ndarray:
    return np.log2(1.0 + x)


def visible_counts(raw: Counts, hidden: np.ndarray | None) -> np.ndarray:
    """Return the counts with hidden ones set to 0, ``(n, g)`` float64."""
    counts = np.asarray(raw.counts, np.float64)
    return counts if hidden is None else np.where(hidden, 0.0, counts)


def scale(raw: Counts, seen: np.ndarray, layer: str) -> np.ndarray:
    """Factor of each spot, ``(n,)`` float64, from the counts seen; 0 where there are none."""
    if layer not in LAYERS:
        raise InputError(f"unknown layer {layer!r}: choose {' or '.join(LAYERS)}")
    if layer == "log1p":
        total, wanted = (seen / raw.lengths).sum(axis=1) + raw.rest_per_base, 1e6
    else:
        total, wanted = seen.sum(axis=1) + raw.rest_counts, 1e4
    return np.divide(wanted, total, out=np.zeros(len(total)), where=total > 0)


def normalise(counts: np.ndarray, factor: np.ndarray, lengths: np.ndarray, layer: str) -> np.ndarray:
    """Expression of counts under a given factor per spot, ``(n, g)`` float64."""
    if layer == "log1p":
        return _log2p(counts / lengths * factor[:, None])
    return np.log1p(counts * factor[:, None])


def rng_of(slide: str, repeat: int, seed: int = 0) -> np.random.Generator:
    """Return the generator of one repeat on one slide: the same for every method and rule, whatever slides there are besides."""
    return np.random.default_rng([seed, repeat, crc32(slide.encode())])
