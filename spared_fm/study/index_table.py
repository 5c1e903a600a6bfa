"""Rows of a search: which slide and spot a vector id means, and which of them may be found.

A vector id is ``slide number << 32 | row``. In an index a slide keeps its number for good, and a number is never given to
another slide, so that ids in segments, which are never rewritten, stay true.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import key_name
from spared_fm.store.mapped import MAPPED_CHUNKS
from spared_fm.study.encode import choose_slides, find_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spared_fm.store.layout import Layout

ROW_BITS = 32


def ids_of(number: int, rows: np.ndarray | range | int) -> np.ndarray:
    """Vector ids, int64 (n,), of rows of the slide with this number."""
    return (np.int64(number) << ROW_BITS) | np.asarray(rows, dtype=np.int64)


def numbers_of(ids: np.ndarray) -> np.ndarray:
    """Slide numbers, int64 (n,), of vector ids."""
    return ids >> ROW_BITS


def rows_of(ids: np.ndarray) -> np.ndarray:
    """Rows in their slides, int64 (n,), of vector ids."""
    return ids & ((1 << ROW_BITS) - 1)


def standardized(key: str) -> bool:
    """Whether embeddings are standardised before they are compared, if nobody says.

    The built-in encoders' dimensions are statistics in units of their own: a cosine of them as they are is that of the
    largest. A network's are left as they are, as its authors compare them.
    """
    from spared_fm.encoders.registry import BUILT_INS

    return key.split("@")[0] in BUILT_INS


def encoded_slides(layout: Layout, slides: str | Sequence[str] | None, encoder: str) -> tuple[list[str], str]:
    """Find the slides that have an encoder's embeddings, and their key.

    Parameters
    ----------
    layout
        The store.
    slides
        Glob or ids; by default all slides that have the embeddings. Slides that are named are never left out.
    encoder
        Encoder name or array key.

    Raises
    ------
    InputError
        No slide, no such embeddings, or embeddings of several recipes.
    """
    chosen = choose_slides(layout, slides)
    if slides is None:
        plain = key_name(encoder)
        fits = [
            slide
            for slide in chosen
            if any(key in (encoder, plain) or key.split("@")[0] == plain for key in layout.embeddings(slide))
        ]
        chosen = fits or chosen
    return chosen, find_key(layout, chosen, encoder)


class Scale(NamedTuple):
    """Standardises embeddings: each dimension less its mean, over its standard deviation.

    Attributes
    ----------
    mean, inverse
        float32 (dim,); the inverse of a deviation of 0 is 0, so that such a dimension plays no part.
    """

    mean: np.ndarray
    inverse: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardise values (n, dim), as float32; NaN stays NaN."""
        out: np.ndarray = (values.astype(np.float32) - self.mean) * self.inverse
        return out

    @classmethod
    def measure(cls, blocks: Iterable[tuple[Any, np.ndarray]]) -> Scale:
        """Measure it on all finite rows of blocks (ids, values)."""
        rows, total, squares = 0, np.zeros(1), np.zeros(1)
        for _, values in blocks:
            there = values[np.isfinite(values).all(axis=1)].astype(np.float64)
            rows, total, squares = rows + len(there), total + there.sum(axis=0), squares + np.square(there).sum(axis=0)
        mean = total / max(1, rows)
        deviation = np.sqrt(np.maximum(squares / max(1, rows) - np.square(mean), 0.0))
        flat = deviation <= 1e-6 * np.maximum(1e-12, np.abs(mean))  # what rounding leaves of a constant
        return cls(mean.astype(np.float32), np.where(flat, 0.0, 1 / np.where(flat, 1.0, deviation)).astype(np.float32))


class Rows:
    """The embeddings that a search may look at.

    Parameters
    ----------
    layout
        The store.
    key
        Array key.
    numbers
        Slide → its number in vector ids.
    sizes
        Slide number → rows, where they are known already.
    scale
        Applied to the embeddings.
    """

    def __init__(
        self,
        layout: Layout,
        key: str,
        numbers: Mapping[str, int],
        sizes: Mapping[int, int] | None = None,
        scale: Scale | None = None,
    ) -> None:
        self.scale = scale
        self.layout, self.key, self.numbers = layout, key, dict(numbers)
        self._sizes = dict(sizes or {})
        self._slides = {number: slide for slide, number in self.numbers.items()}
        self._arrays: dict[int, EmbeddingArray] = {}
        self._opening = threading.Lock()  # a server's threads share these rows

    def slide(self, number: int) -> str:
        """Slide with this number."""
        return self._slides[number]

    def array(self, number: int) -> EmbeddingArray:
        """Embeddings of the slide with this number; refused where they are not of the slide as it is now."""
        with self._opening:
            array = self._arrays.pop(number, None)
            if array is None:
                array = EmbeddingArray(self.layout, self._slides[number], self.key)
                array.check_current()
            chunks = sum(held.n_chunks for held in self._arrays.values())
            while (
                self._arrays and chunks + array.n_chunks > MAPPED_CHUNKS // 2
            ):  # a mapped chunk holds a file descriptor
                chunks -= self._arrays.pop(next(iter(self._arrays))).n_chunks
            self._arrays[number] = array
            return array

    def size(self, number: int) -> int:
        """Rows of the slide with this number."""
        if number not in self._sizes:
            self._sizes[number] = self.array(number).shape[0]
        return self._sizes[number]

    def kept(self, masks: Mapping[str, np.ndarray | None]) -> Kept:
        """Keep spots of slides: slide → bool (spots,), or None for all."""
        numbered = {self.numbers[slide]: mask for slide, mask in masks.items()}
        return Kept(numbered, {number: self.size(number) for number in numbered})

    def where(self, ids: np.ndarray) -> list[tuple[str, int]]:
        """Slide and row of each vector id."""
        return [(self._slides[n], r) for n, r in zip(numbers_of(ids).tolist(), rows_of(ids).tolist(), strict=True)]

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings of vector ids in any order, (n, dim); absent rows are NaN."""
        numbers, rows = numbers_of(ids), rows_of(ids)
        found = [(numbers == number, self.array(int(number))) for number in np.unique(numbers)]
        if not found:
            first = self.array(next(iter(self._slides)))
            return np.empty((0, first.shape[1]), first.dtype)
        out = np.empty((len(ids), found[0][1].shape[1]), found[0][1].dtype)
        for mine, array in found:
            out[mine] = array.read(rows[mine])
        return self.scaled(out)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Standardise values (n, dim) where this is asked for."""
        return values if self.scale is None else self.scale(values)

    def blocks(self, kept: Kept) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids (m,) and embeddings (m, dim) of the rows that are kept, chunk by chunk."""
        for number, mask in kept.masks.items():
            array = self.array(number)
            if mask is None:
                for rows, values in array.blocks():
                    yield ids_of(number, rows), self.scaled(values)
            else:
                for start in range(0, len(mask), array.chunk_rows):
                    picked = start + np.flatnonzero(mask[start : start + array.chunk_rows])
                    if len(picked):
                        yield ids_of(number, picked), self.scaled(array.read(picked))


class Kept:
    """Which rows a search may give.

    Parameters
    ----------
    masks
        Slide number → which of its rows, bool (rows,), or None for all. Other slides are left out.
    sizes
        Slide number → its rows, for the slides in `masks`.
    """

    def __init__(self, masks: Mapping[int, np.ndarray | None], sizes: Mapping[int, int]) -> None:
        self.masks = {number: mask for number, mask in masks.items() if mask is None or mask.any()}
        self._sizes = sizes

    def __len__(self) -> int:
        return sum(self._sizes[n] if mask is None else int(mask.sum()) for n, mask in self.masks.items())

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids are kept: bool (n,)."""
        numbers, rows = numbers_of(ids), rows_of(ids)
        out = np.zeros(len(ids), dtype=bool)
        for number in np.unique(numbers).tolist():
            if number in self.masks:
                mine = numbers == number
                mask = self.masks[number]
                out[mine] = True if mask is None else mask[rows[mine]]
        return out

    def ids(self) -> np.ndarray:
        """All ids kept, int64, sorted."""
        parts = [
            ids_of(number, range(self._sizes[number]) if mask is None else np.flatnonzero(mask))
            for number, mask in sorted(self.masks.items())
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def without(self, numbers: Iterable[int]) -> Kept:
        """Keep the same less some slides."""
        out = set(numbers)
        return Kept({n: mask for n, mask in self.masks.items() if n not in out}, self._sizes)
