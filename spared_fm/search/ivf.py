"""What is used of FAISS's inverted lists beyond the part of it that has types."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray


@contextlib.contextmanager
def bounded(threads: int | None) -> Iterator[None]:
    """Let FAISS use at most ``threads`` threads (None: as many as OpenMP is given) for what this thread calls."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(threads, before) if threads else before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def write(path: Path, *parts: Any) -> list[int]:
    """Write an index, a transform or inverted lists, one after the other; return where each ends."""
    ends: list[int] = []
    for part in parts:
        writer: Any = faiss.VectorIOWriter() if ends else faiss.FileIOWriter(str(path))
        if isinstance(part, faiss.Index):
            faiss.write_index(part, writer)
        elif isinstance(part, faiss.VectorTransform):
            faiss.write_VectorTransform(part, writer)
        else:
            faiss.write_InvertedLists(part, writer)
        if ends:
            with path.open("ab") as file:
                faiss.vector_to_array(writer.data).tofile(file)
        del writer  # closes the file
        ends.append(path.stat().st_size)
    return ends


def read(kind: Callable[..., Any], path: Path, mapped: NDArray[np.uint8]) -> Any:
    """Read what :func:`write` wrote from mapped bytes of a file that was checked; large arrays stay there.

    Raises
    ------
    InputError
        FAISS can't read it.
    """
    library: Any = faiss
    try:
        return kind(library.ZeroCopyIOReader(faiss.swig_ptr(mapped), mapped.size), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise InputError(f"{path} is no index that FAISS {faiss.__version__} reads; build the index again") from error


@dataclasses.dataclass
class Trained:
    """What segments share: inverted lists without rows, mapped, and the transform (PCA, rotation) before them, or None."""

    path: Path
    mapped: NDArray[np.uint8]
    ivf: Any
    transform: Any

    @classmethod
    def open(cls, path: Path) -> Trained:
        """Map a trained file that was checked."""
        mapped = np.asarray(np.memmap(path, np.uint8, "r"))
        at, transform = int(mapped[-8:].view("<i8")[0]), None
        if at < len(mapped) - 8:
            transform = read(lambda reader, _: faiss.read_VectorTransform(reader), path, mapped[at:-8])
        return cls(path, mapped[:at], read(faiss.read_index, path, mapped[:at]), transform)

    @property
    def dim(self) -> int:
        """Dimensions of the vectors before the transform."""
        return int(self.ivf.d if self.transform is None else self.transform.d_in)

    def points(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors as the inverted lists take them."""
        return np.ascontiguousarray(vectors if self.transform is None else self.transform.apply(vectors))

    def filled(self, path: Path, mapped: NDArray[np.uint8]) -> Any:
        """Return inverted lists like these with the rows of a mapped segment, which must be kept mapped."""
        ivf = read(faiss.read_index, self.path, self.mapped)
        lists: Any = faiss.downcast_InvertedLists(read(faiss.read_InvertedLists, path, mapped))
        if (lists.nlist, lists.code_size) != (ivf.nlist, ivf.code_size):
            raise InputError(f"{path} was not written with {self.path.name}; build the index again")
        ivf.replace_invlists(lists, True)
        ivf.ntotal = lists.compute_ntotal()
        ivf.parallel_mode = 3  # over queries
        return ivf


def list_rows(ivf: Any, number: int) -> NDArray[np.int64]:
    """Return FAISS's ids of the rows in one inverted list, as a view."""
    size = ivf.invlists.list_size(number)
    return faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size) if size else np.empty(0, np.int64)


def visit_lists(
    ivf: Any,
    points: NDArray[np.float32],
    lists: NDArray[np.int64],
    distance: NDArray[np.float32],
    count: int,
    bits: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search given lists, int64 (q, p) at distances (q, p), for rows whose bits are set; None is all.

    Returns
    -------
    far, rows
        Distances (or inner products) and FAISS's ids (q, count), -1 where the lists hold fewer.
    """
    options: Any = faiss.SearchParametersIVF
    if bits is None:
        options = options(nprobe=lists.shape[1])
    else:
        bitmap: Any = faiss.IDSelectorBitmap
        options = options(nprobe=lists.shape[1], sel=bitmap(bits))
    far, rows = np.empty((len(points), count), np.float32), np.empty((len(points), count), np.int64)
    # FAISS's own wrapper of this call takes no options
    ivf.search_preassigned_c(
        len(points),
        faiss.swig_ptr(points),
        count,
        faiss.swig_ptr(lists),
        faiss.swig_ptr(distance),
        faiss.swig_ptr(far),
        faiss.swig_ptr(rows),
        False,
        options,
    )
    return far, rows
