"""Batches for people who train heads with PyTorch: features, targets and mask of a cohort's spots, read block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from spared_fm.benchmark.splits import PARTS
from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.nodes import MATRIX_ROWS, read_elem, read_index
from spared_fm.study.cohort import cohort_record, require_layer
from spared_fm.study.cohort_split import spot_positions, units
from spared_fm.study.encode import find_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spared_fm.store.layout import Layout

    Columns = dict[tuple[str, str], np.ndarray]

MASK = "mask"


class SpotBatches(IterableDataset[dict[str, Any]]):
    """Batches of one part of a cohort's spots, read from the store block by block.

    Spots are joined by (slide, barcode). A spot whose patch is absent for one of the encoders is left out. Held in memory are
    a buffer of ``buffer_blocks`` blocks, one more block while it is read, and three numbers per spot of the part.

    With several workers of a ``DataLoader`` every worker takes every n-th block. Which spots share a batch then depends on the
    number of workers; which spots an epoch has does not. The last batch of each worker may be smaller.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name.
    encoders
        One or several encoder names or array keys.
    targets
        One or several layers of the cohort.
    split
        ``train``, ``val`` or ``test``.
    batch_size
        Spots per batch.
    shuffle
        Draw the order of the blocks, and of the spots within the buffer, anew for every epoch (see :meth:`set_epoch`);
        else blocks and spots come in the order of the cohort.
    seed
        Seed of the orders.
    block_rows
        Least spots in a block. Blocks are cut where chunks of the targets end, so that each of these is read once, and have
        less than this plus a chunk's rows. The last block has what is left.
    buffer_blocks
        Blocks that are mixed with each other.

    Attributes
    ----------
    slides
        Ids of the slides, numbered as in the batches.
    n_spots
        Spots in one epoch.
    n_absent
        Spots left out for an absent patch.
    dims
        Encoder, as it was named → length of its vector.
    genes
        Names of the targets' columns.

    Raises
    ------
    InputError
        Unknown cohort, encoder, layer or split; no spot in this part; embeddings that are unfinished, stale or lack a spot of
        the cohort; a size that is not positive.
    """

    def __init__(
        self,
        layout: Layout,
        cohort: str,
        encoders: str | Sequence[str],
        targets: str | Sequence[str],
        split: str = "train",
        *,
        batch_size: int = 256,
        shuffle: bool = True,
        seed: int = 0,
        block_rows: int = MATRIX_ROWS,
        buffer_blocks: int = 8,
    ) -> None:
        for name, size in (("batch_size", batch_size), ("block_rows", block_rows), ("buffer_blocks", buffer_blocks)):
            if size < 1:
                raise InputError(f"{name} {size} is not positive; give 1 or more")
        if split not in PARTS:
            raise InputError(f"split {split!r} is not {', '.join(PARTS)}")
        self.layout, self.cohort, self.split = layout, cohort, split
        self.encoders = _names(encoders, "encoder")
        self.targets = _names(targets, "target")
        self.batch_size, self.shuffle, self.seed, self.buffer_blocks = batch_size, shuffle, seed, buffer_blocks
        record = cohort_record(layout, cohort)
        for layer in (*self.targets, MASK):
            require_layer(record, cohort, layer)
        self.slides = list(record["split"])
        self.genes = [str(gene) for gene in read_index(layout, f"{layout.cohort(cohort)}/var")]
        self._keys = {encoder: find_key(layout, self.slides, encoder) for encoder in self.encoders}
        self.dims: dict[str, int] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._join(record)
        self._blocks = _cut(self._rows, block_rows)
        # shared, so that workers that outlive an epoch learn of the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is drawn next; call it before each pass, or every pass has the same order."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Give the batches of one epoch.

        Yields
        ------
        dict
            ``features``: encoder, as it was named → float32 (b, dim). ``targets``: layer → float32 (b, genes). ``mask``: bool
            (b, genes), True where the entry was measured. ``row``: int64 (b,), the spot's row in the cohort
            (``cohort_data(name).obs``). ``slide``: int64 (b,), position in :attr:`slides`.
        """
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch = int(self._epoch)
        blocks = np.arange(len(self._blocks))
        if self.shuffle:  # the same order in every worker, which then takes its share
            blocks = np.random.default_rng([self.seed, epoch]).permutation(blocks)
        blocks = blocks[worker::workers]
        rng = np.random.default_rng([self.seed, epoch, worker])
        layers = {layer: self._layer(layer) for layer in dict.fromkeys((*self.targets, MASK))}
        at_once = self.buffer_blocks if self.shuffle else 1
        rest: Columns | None = None
        for start in range(0, len(blocks), at_once):
            buffer = self._fill(blocks[start : start + at_once], rest, layers)
            n = len(buffer["", "row"])
            order = rng.permutation(n) if self.shuffle else np.arange(n)
            whole = n if start + at_once >= len(blocks) else n - n % self.batch_size
            for first in range(0, whole, self.batch_size):
                yield self._batch(buffer, order[first : min(first + self.batch_size, whole)])
            rest = {name: values[order[whole:]] for name, values in buffer.items()}
            del buffer  # before the next one is made

    def _join(self, record: dict[str, Any]) -> None:
        """Find the part's spots: rows in the cohort, their slides, and their rows in the slides."""
        obs = read_elem(self.layout, f"{self.layout.cohort(self.cohort)}/obs")
        rows, slides, positions, self.n_absent = [], [], [], 0
        for slide, part, own in units(obs, record["split"]).values():
            if part != self.split or not len(own):
                continue
            position = spot_positions(self.layout, self.cohort, slide, obs["barcode"].to_numpy()[own])
            present = ~np.isin(position, self._absent(slide, position))
            self.n_absent += int((~present).sum())
            rows.append(own[present])
            positions.append(position[present])
            slides.append(np.full(present.sum(), self.slides.index(slide)))
        if not sum(map(len, rows)):
            raise InputError(
                f"cohort {self.cohort!r} has no {self.split} spot with features of {', '.join(self.encoders)}; "
                "choose another split, or build the cohort with another one"
            )
        all_rows = np.concatenate(rows)
        order = np.argsort(all_rows)
        self._rows = all_rows[order]
        self._slides = np.concatenate(slides)[order]
        self._positions = np.concatenate(positions)[order]
        self.n_spots = len(order)

    def _absent(self, slide: str, positions: np.ndarray) -> list[int]:
        """Rows of a slide that are absent for an encoder; raises where embeddings of ``positions`` can't be served."""
        absent: set[int] = set()
        for encoder, key in self._keys.items():
            array = EmbeddingArray(self.layout, slide, key)
            array.check_current()
            unfinished = np.intersect1d(positions // array.chunk_rows, array.missing())
            if len(unfinished):
                array.read(unfinished * array.chunk_rows)  # raises, and names them: now rather than in mid-training
            absent |= array.absent().keys()
            self.dims[encoder], self._dtypes[encoder] = array.shape[1], array.dtype
        return sorted(absent)

    def _layer(self, layer: str) -> zarr.Array:
        node = f"{self.layout.cohort(self.cohort)}/layers/{layer}"
        return zarr.open_array(self.layout.zarr_store(node), mode="r", zarr_format=3)

    def _fill(self, blocks: np.ndarray, rest: Columns | None, layers: dict[str, zarr.Array]) -> Columns:
        """Read blocks below the rows that were left of the last buffer, into arrays made once."""
        start = 0 if rest is None else len(rest["", "row"])
        n = start + sum(len(self._blocks[block]) for block in blocks)
        buffer: Columns = {("", name): np.empty(n, np.int64) for name in ("row", "slide")}
        for encoder, dim in self.dims.items():
            buffer["features", encoder] = np.empty((n, dim), self._dtypes[encoder])
        for layer, array in layers.items():
            buffer["targets", layer] = np.empty((n, array.shape[1]), array.dtype)
        if rest is not None:
            for name, values in rest.items():
                buffer[name][:start] = values
        for block in blocks:
            spots = self._blocks[block]
            self._read({name: values[start : start + len(spots)] for name, values in buffer.items()}, spots, layers)
            start += len(spots)
        return buffer

    def _read(self, into: Columns, spots: range, layers: dict[str, zarr.Array]) -> None:
        inside = slice(spots.start, spots.stop)
        rows, slides, positions = self._rows[inside], self._slides[inside], self._positions[inside]
        into["", "row"][:], into["", "slide"][:] = rows, slides
        for slide in np.unique(slides):
            here = slides == slide
            for encoder, key in self._keys.items():
                # opened for this block only: what is mapped holds a file descriptor per chunk
                array = EmbeddingArray(self.layout, self.slides[slide], key)
                into["features", encoder][here] = array.read(positions[here])
        for layer, stored in layers.items():
            chunks = rows // stored.chunks[0]
            for chunk in np.unique(chunks):  # not one slice: the part's rows may lie far apart
                first = int(chunk) * stored.chunks[0]
                here = chunks == chunk
                values = np.asarray(stored[first : first + stored.chunks[0]])
                into["targets", layer][here] = values[rows[here] - first]

    def _batch(self, buffer: Columns, picked: np.ndarray) -> dict[str, Any]:
        def tensor(name: tuple[str, str], dtype: type) -> torch.Tensor:
            return torch.from_numpy(buffer[name][picked].astype(dtype, copy=False))

        return {
            "features": {encoder: tensor(("features", encoder), np.float32) for encoder in self.encoders},
            "targets": {layer: tensor(("targets", layer), np.float32) for layer in self.targets},
            "mask": tensor(("targets", MASK), np.bool_),
            "row": tensor(("", "row"), np.int64),
            "slide": tensor(("", "slide"), np.int64),
        }


def loader(
    layout: Layout,
    cohort: str,
    encoders: str | Sequence[str],
    targets: str | Sequence[str] = "lognorm",
    split: str = "train",
    *,
    batch_size: int = 256,
    shuffle: bool | None = None,
    seed: int = 0,
    workers: int = 0,
) -> DataLoader[dict[str, Any]]:
    """Make a ``DataLoader`` of :class:`SpotBatches`, which is its ``dataset``.

    Parameters
    ----------
    layout
        The store.
    cohort, encoders, targets, split, batch_size, seed
        As for :class:`SpotBatches`.
    shuffle
        As for :class:`SpotBatches`; by default the spots of ``train`` are shuffled, the others not.
    workers
        Processes that read; 0: this one. They are started afresh, not forked (a fork of a process with threads may hang), so
        a script that uses them begins with ``if __name__ == "__main__":``.

    Returns
    -------
    DataLoader
        Gives the batches of :meth:`SpotBatches.__iter__`; it has no length, ``loader.dataset.n_spots`` says how many spots come.

    Raises
    ------
    InputError
        As for :class:`SpotBatches`, or a negative number of workers.
    """
    if workers < 0:
        raise InputError(f"workers {workers} is negative; give 0 (this process) or more")
    batches = SpotBatches(
        layout,
        cohort,
        encoders,
        targets,
        split,
        batch_size=batch_size,
        shuffle=split == "train" if shuffle is None else shuffle,
        seed=seed,
    )
    return DataLoader(
        batches,
        batch_size=None,  # the data set makes the batches
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )


def _names(given: str | Sequence[str], what: str) -> list[str]:
    names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    if not names:
        raise InputError(f"no {what} is named; name one or several")
    return names


def _cut(rows: np.ndarray, block_rows: int) -> list[range]:
    """Cut sorted rows of a cohort where chunks of its layers end, and as soon as ``block_rows`` of them are together."""
    chunks = rows // min(block_rows, MATRIX_ROWS)
    blocks, start = [], 0
    for edge in (np.flatnonzero(np.diff(chunks)) + 1).tolist():
        if edge - start >= block_rows:
            blocks.append(range(start, edge))
            start = edge
    return [*blocks, range(start, len(rows))]
