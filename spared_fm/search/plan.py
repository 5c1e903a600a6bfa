"""What kind of index fits so many vectors: a table of measured defaults, as data."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from spared_fm.errors import InputError

Kind = Literal["exact", "ivf-sq", "pca-ivf-rabitq"]
_Choice = tuple[Kind, str, int, int, int, int]

#: Up to so many vectors a scan of the mapped rows takes tens of milliseconds: nothing is built.
EXACT_ROWS = 100_000
#: Up to so many the vectors themselves are kept, in half precision; beyond, codes of 40 bytes.
HALF_ROWS = 2_000_000
#: Beyond this, segments are best written, and searched, on several machines or disks at once.
SHARD_ROWS = 50_000_000
#: Vectors that k-means sees for each list: at most, and at least.
MOST_PER_LIST, FEWEST_PER_LIST = 64, 32
#: Dimensions that binary codes are made of, after PCA.
CODE_DIM = 256
#: Memory that a build takes unless it is told.
BUILD_BYTES = 2 << 30
#: Most bytes of a segment: object stores take 5 GB in one piece.
SEGMENT_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Plan:
    """How an index is built and searched.

    Attributes
    ----------
    kind
        ``"exact"``: no index. ``"ivf-sq"``: inverted lists of scalar-quantised vectors. ``"pca-ivf-rabitq"``: inverted
        lists of one bit per dimension after PCA, to be scored again with the stored vectors.
    rows, dim
        The vectors it is meant for.
    factory
        FAISS factory string; empty for ``"exact"``.
    lists
        Inverted lists.
    train_rows
        Vectors to train with.
    probes
        Lists that a query visits, until a measurement says otherwise.
    candidates
        For each result asked for, so many are found and scored again.
    segment_rows
        Most rows of a segment, so that writing one stays within the memory, and an object store takes it.
    shards
        Machines or disks that the segments are best spread over.
    bytes
        Size on disk, estimated.
    """

    kind: Kind
    rows: int
    dim: int
    factory: str = ""
    lists: int = 0
    train_rows: int = 0
    probes: int = 0
    candidates: int = 1
    segment_rows: int = 0
    shards: int = 1
    bytes: int = 0


def choose(rows: int, dim: int, *, memory: int | None = None, target_recall: float = 0.95) -> Plan:
    """Choose an index for ``rows`` vectors of ``dim`` dimensions.

    Parameters
    ----------
    rows, dim
        Number and length of the vectors.
    memory
        Bytes that a build may take, and that the index may fill when all of it is in memory; smaller codes are chosen to
        fit. By default a build takes 2 GiB, and the size of the (mapped) index is not bounded.
    target_recall
        Recall@10 that is aimed at; it decides the probes to start with, which ``recall.tune`` then measures.

    Returns
    -------
    Plan
        Exact up to 1e5 vectors; 4√n lists in half precision up to 2e6; one-bit codes beyond.

    Raises
    ------
    InputError
        A recall outside (0, 1], no dimension, or a memory that nothing fits in.
    """
    if not 0 < target_recall <= 1:
        raise InputError(f"the target recall is {target_recall}: give a number above 0, at most 1")
    if rows < 0 or dim < 1:
        raise InputError(f"{rows} vectors of {dim} dimensions can't be indexed: encode a slide first")
    if rows <= EXACT_ROWS:
        return Plan("exact", rows, dim)
    build = BUILD_BYTES if memory is None else memory
    train_rows = min(rows, build // 2 // (4 * dim))
    lists = max(1, min(round(4 * math.sqrt(rows)), train_rows // FEWEST_PER_LIST))
    train_rows = min(train_rows, MOST_PER_LIST * lists)
    careful = 2 if target_recall > 0.97 else 1
    code_dim = min(dim, CODE_DIM)
    rotation = f"PCAR{code_dim}" if code_dim < dim else f"RR{dim}"
    # kind, factory, bytes of a code, dimensions of the lists' centres, probes, candidates
    half: _Choice = ("ivf-sq", f"IVF{lists},SQfp16", 2 * dim, dim, 8, 1)
    byte: _Choice = ("ivf-sq", f"IVF{lists},SQ8", dim, dim, 8, 3)
    bit: _Choice = ("pca-ivf-rabitq", f"{rotation},IVF{lists},RaBitQ", -(-code_dim // 8) + 8, code_dim, 16, 10)
    choices = [half, byte, bit] if rows <= HALF_ROWS else [bit]
    # a row takes FAISS's number of it, and our id, besides its code
    sizes = [rows * (choice[2] + 16) + 4 * choice[3] * (lists + dim) for choice in choices]
    fitting = [i for i, size in enumerate(sizes) if memory is None or size <= memory]
    if not fitting:
        raise InputError(f"an index of {rows} vectors takes {sizes[-1] / 1e9:.2g} GB or more: give it that much memory")
    kind, factory, code, _, probes, candidates = choices[fitting[0]]
    if train_rows < max(FEWEST_PER_LIST, code_dim):
        raise InputError(f"{build} bytes of memory are too few to train an index of {dim} dimensions: give it more")
    return Plan(
        kind=kind,
        rows=rows,
        dim=dim,
        factory=factory,
        lists=lists,
        train_rows=train_rows,
        probes=min(lists, probes * careful),
        candidates=candidates,
        segment_rows=max(1, min(build // 2, SEGMENT_BYTES) // (code + 16)),
        shards=-(-rows // SHARD_ROWS),
        bytes=sizes[fitting[0]],
    )
