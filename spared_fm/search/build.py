"""Training an index and writing its segments, out of core.

A trained file holds what all segments share: an FAISS index without rows (the centres of the lists, the ranges of a
quantiser), then the transform before it (PCA), if there is one, and last, in 8 bytes, where that begins. A segment is
one immutable file: FAISS's inverted lists, of row numbers and codes, padded to 8 bytes, then the ids of its rows,
ascending, as little-endian int64. Whatever the number of segments, a query visits the same lists of them all, so
together they answer as one index would.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from spared_fm.errors import InputError
from spared_fm.folders import replacing
from spared_fm.search.exact import pieces, row_norms, unit_rows
from spared_fm.search.files import checksum
from spared_fm.search.ivf import Trained, bounded, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray

    from spared_fm.search.exact import Metric
    from spared_fm.search.plan import Plan

    Blocks = Iterable[tuple[ArrayLike, ArrayLike]]


class NoVectorsError(InputError):
    """There is no finite row to index."""


#: Largest value that half precision holds, less some room for the difference from a list's centre.
LARGEST_HALF = 3e4


def comparable(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], metric: Metric
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the finite rows as FAISS compares them: of norm 1 for cosine, whose order is then that of distances."""
    norms = row_norms(vectors, metric)
    kept = np.isfinite(norms)
    if not kept.all():
        ids, vectors, norms = ids[kept], vectors[kept], norms[kept]
    return ids, (unit_rows(vectors, norms) if metric == "cosine" else vectors)


def sample(blocks: Blocks, total: int, rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Draw rows at random to train with.

    Parameters
    ----------
    blocks
        ``(ids, vectors)``: int64 (m,) and float16 or float32 (m, d), which may be memory maps.
    total
        Rows in all blocks.
    rows
        How many to draw.
    seed
        Decides which.

    Returns
    -------
    ndarray
        float32 (at most ``rows``, d): rows that hold NaN or infinity are left out.

    Raises
    ------
    InputError
        No rows.
    """
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(rows, total), replace=False, shuffle=False))
    parts, first = [], 0
    for _, vectors in blocks:
        vectors = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors)
        here = drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, first + len(vectors))] - first
        part = vectors[here].astype(np.float32)
        parts.append(part[np.isfinite(part).all(axis=1)])
        first += len(vectors)
    if not sum(map(len, parts)):
        raise InputError("there are no vectors to train with: encode a slide first")
    return np.concatenate(parts)


def train(
    path: str | Path,
    plan: Plan,
    sample: NDArray[np.floating],
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train an index and write it, empty.

    Parameters
    ----------
    path
        File to write.
    plan
        From :func:`spared_fm.search.plan.choose`, not of kind ``"exact"``.
    sample
        float (n, d) vectors, about ``plan.train_rows``.
    metric
        As in :func:`spared_fm.search.exact.search`.
    seed
        Of k-means.
    threads
        Most threads; by default all cores.

    Returns
    -------
    dict
        What a card says of a trained file: ``file``, ``bytes``, ``crc32c``.

    Raises
    ------
    InputError
        Fewer usable vectors than lists, or of another dimension.
    """
    path = Path(path)
    if sample.ndim != 2 or sample.shape[1] != plan.dim:
        raise InputError(f"the plan is for {plan.dim} dimensions, the sample has shape {sample.shape}")
    _, vectors = comparable(np.arange(len(sample)), np.ascontiguousarray(sample, dtype=np.float32), metric)
    if len(vectors) < plan.lists:
        raise InputError(f"{len(vectors)} vectors are too few to train {plan.lists} lists: give more, or plan anew")
    with bounded(threads):
        index: Any = faiss.index_factory(
            plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
        )
        ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
        ivf.cp.seed = seed
        ivf.cp.min_points_per_centroid, ivf.cp.max_points_per_centroid = 1, max(1, -(-len(vectors) // plan.lists))
        parts = [ivf]
        if isinstance(index, faiss.IndexPreTransform):
            chain: Any = index.chain
            parts.append(faiss.downcast_VectorTransform(chain.at(0)))
            # centring would change inner products; the mean of a sample and its mirror image is zero
            parts[1].train(np.concatenate([vectors, -vectors]) if metric == "ip" else vectors)
        index.train(vectors)
    with replacing(path) as temporary:
        ends = write(temporary, *parts)
        with temporary.open("ab") as file:
            file.write(np.int64(ends[0]).astype("<i8").tobytes())
    return {"file": path.name, "bytes": path.stat().st_size, "crc32c": checksum(path)}


def write_segment(
    path: str | Path,
    trained: str | Path,
    blocks: Callable[[], Blocks],
    *,
    metric: Metric = "cosine",
    threads: int | None = None,
) -> dict[str, Any]:
    """Write a segment: all rows of the blocks, in the lists of a trained index.

    The blocks are read twice, in pieces of 64 MiB: the lists' sizes are known before they are filled, so memory holds the
    codes once.

    Parameters
    ----------
    path
        File to write.
    trained
        File that :func:`train` wrote.
    blocks
        Gives, at each call, all ``(ids, vectors)`` again: int64 (m,), ascending over the blocks and not negative, and
        float16 or float32 (m, d). Rows that hold NaN or infinity are skipped.
    metric
        The one it was trained with.
    threads
        Most threads; by default all cores.

    Returns
    -------
    dict
        What a card says of a segment: ``file``, ``rows``, ``bytes``, ``crc32c``, ``head_bytes`` and ``head_crc32c`` (the
        part FAISS parses), ``ids_at`` (where the ids begin).

    Raises
    ------
    NoVectorsError
        No finite rows.
    InputError
        Ids that don't ascend, vectors of another dimension, or too large for half precision.
    """
    path = Path(path)
    shared = Trained.open(Path(trained))
    ivf = shared.ivf
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    half = isinstance(ivf, faiss.IndexIVFScalarQuantizer) and ivf.sq.qtype == faiss.ScalarQuantizer.QT_fp16

    def ready() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for ids, vectors in pieces(blocks(), shared.dim):
            ids, vectors = comparable(ids, vectors, metric)
            if len(ids) and half and (large := np.abs(vectors).max()) > LARGEST_HALF:
                raise InputError(f"vectors hold values up to {large:.1e}, too large for half precision: use cosine")
            yield ids, shared.points(vectors)

    with bounded(threads):
        id_parts, list_parts = [], []
        for ids, vectors in ready():
            id_parts.append(ids)
            list_parts.append(ivf.quantizer.search(vectors, 1)[1][:, 0])
        rows = sum(map(len, id_parts))
        if not rows:
            raise NoVectorsError("there are no vectors to index: encode a slide first")
        all_ids, assigned = np.concatenate(id_parts), np.concatenate(list_parts)
        if all_ids[0] < 0 or (np.diff(all_ids) <= 0).any():
            raise InputError("the ids of a segment must ascend and not be negative: write its slides in order")
        for number, size in enumerate(np.bincount(assigned, minlength=ivf.nlist).tolist()):
            lists.resize(number, size)  # a list that shrinks keeps its memory, so filling it never doubles it
            lists.resize(number, 0)
        start = 0
        for ids, vectors in ready():
            stop = start + len(ids)
            if not np.array_equal(ids, all_ids[start:stop]):
                raise InputError("the vectors changed while they were indexed: index them again")
            numbers, to = np.arange(start, stop, dtype=np.int64), np.ascontiguousarray(assigned[start:stop])
            ivf.add_core(len(ids), faiss.swig_ptr(vectors), faiss.swig_ptr(numbers), faiss.swig_ptr(to))
            start = stop
        if start != rows:
            raise InputError("the vectors changed while they were indexed: index them again")

    with replacing(path) as temporary:
        (size,) = write(temporary, lists)
        with temporary.open("ab") as file:
            file.write(bytes(-size % 8))
            all_ids.astype("<i8").tofile(file)
    head = size - rows * (lists.code_size + 8)
    return {
        "file": path.name,
        "rows": rows,
        "bytes": path.stat().st_size,
        "crc32c": checksum(path),
        "head_bytes": head,
        "head_crc32c": checksum(path, head),
        "ids_at": size + -size % 8,
    }
