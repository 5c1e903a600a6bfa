"""Embedding arrays: created full of NaN by the planner, written one whole chunk at a time, served only with a receipt.

The write protocol (DESIGN §2 rule 4): encode the whole chunk, write it (temp, fsync, rename), then put its receipt if there
is none. A receipt is the only proof that a chunk is data; whole-chunk writes make tasks idempotent.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from spared_fm.errors import InputError
from spared_fm.store import recipe as recipes
from spared_fm.store.commit import checksum, commit
from spared_fm.store.grid import CHUNK_ROWS, PROFILES, array_metadata
from spared_fm.store.layout import FORMAT, GROUP, TOKENS, Layout
from spared_fm.store.mapped import MappedRows
from spared_fm.store.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_MEND = "`spared-fm verify --repair` computes it again"
__all__ = ["CHUNK_ROWS", "PROFILES", "EmbeddingArray", "IncompleteError", "slide_record"]


class IncompleteError(InputError):
    """Rows were asked for whose chunk has no receipt."""


class EmbeddingArray:
    """One encoder's embeddings of one slide, ``slides/<slide>/obsm/<key>``, or token grids, ``slides/<slide>.tokens/<key>``.

    Open with :meth:`open`, make with :meth:`plan`.

    Attributes
    ----------
    slide, key
        Where it lies.
    shape
        (spots, dim).
    dtype
        Stored dtype, little-endian.
    chunk_rows
        Rows per chunk; chunk ``k`` holds rows ``[k · chunk_rows, (k + 1) · chunk_rows)``. A chunk is what one task writes, as one
        object, with one receipt (zarr's shard, in the cloud profile).
    attributes
        What the planner wrote: recipe, recipe_id, embedding_id, batch_size, threads …
    """

    def __init__(self, layout: Layout, slide: str, key: str) -> None:
        self.layout, self.slide, self.key = layout, slide, key
        self.node = layout.embedding(slide, key)
        attributes = layout.attributes(self.node)
        if attributes is None:
            known = ", ".join(layout.embeddings(slide)) or "none"
            raise InputError(
                f"slide {slide} has no embeddings {key!r} (it has: {known}); run "
                f"`spared-fm encode --store {layout.root} --slide {slide} --encoder …`"
            )
        self.attributes: dict[str, Any] = attributes
        self._metadata = layout.files.read(f"{self.node}/zarr.json")
        metadata = json.loads(self._metadata)
        self.shape: tuple[int, int] = tuple(metadata["shape"])
        self.chunk_rows: int = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        self._raw = [codec["name"] for codec in metadata["codecs"]] == ["bytes"]
        self._receipts: dict[int, dict[str, Any]] = {}
        self._mapped: MappedRows | None = None
        self._array: zarr.Array | None = None

    # -- planning ------------------------------------------------------------------------------------------------------

    @classmethod
    def plan(
        cls,
        layout: Layout,
        slide: str,
        key: str,
        *,
        recipe: Recipe,
        dim: int,
        chunk_rows: int | None = None,
        profile: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> EmbeddingArray:
        """Create the array full of NaN, or open the one that is there when it is the same embedding.

        Parameters
        ----------
        layout
            The store.
        slide, key
            Slide id and array key.
        recipe
            What decides the vectors.
        dim
            Length of one vector.
        chunk_rows
            Rows per chunk, by default the profile's; lowered to what the spots fill.
        profile
            ``local`` (raw rows that can be mapped) or ``cloud`` (zstd, sharded), see :mod:`spared_fm.store.grid`; by default what
            fits the store's place.
        settings
            Fixed for the array's life and read by every worker: batch size, threads …

        Raises
        ------
        InputError
            The key is taken by another recipe (the message names the key to use), or by the same recipe over another image
            or other spots.
        """
        record = slide_record(layout, slide)
        expected = recipes.embedding_id(recipe.id, record["fingerprint"], record["spots_digest"])
        node = layout.embedding(slide, key)
        if not layout.files.exists(f"{node}/zarr.json"):
            n_spots = record["n_spots"]
            attributes = {
                "encoding-type": "array",
                "encoding-version": "0.2.0",
                FORMAT: {
                    **(settings or {}),
                    "recipe": recipe.as_dict(),
                    "recipe_id": recipe.id,
                    "embedding_id": expected,
                },
            }
            profile = profile or ("local" if layout.is_local else "cloud")
            if key.startswith(f"{TOKENS}/"):
                layout.files.put_if_absent(f"{layout.tokens(slide)}/zarr.json", GROUP)
            metadata = array_metadata((n_spots, dim), chunk_rows, recipe.store_dtype, profile, attributes)
            layout.files.put_if_absent(f"{node}/zarr.json", metadata)
        array = cls(layout, slide, key)
        if array.attributes["recipe_id"] != recipe.id:
            free = f"{key.split('@')[0]}@{recipe.id[:8]}"
            raise InputError(
                f"slide {slide}: embeddings {key!r} were made with another recipe ({_differences(array.recipe, recipe)}); "
                f"use --key {free} to keep both"
            )
        array.check_current()
        return array

    def check_current(self) -> None:
        """Raise :class:`InputError` when the slide's image or spots are no longer those that were encoded."""
        record = slide_record(self.layout, self.slide)
        expected = recipes.embedding_id(self.attributes["recipe_id"], record["fingerprint"], record["spots_digest"])
        if self.attributes["embedding_id"] != expected:
            raise InputError(
                f"slide {self.slide}: embeddings {self.key!r} belong to another image or other spots; remove "
                f"{self.layout.root / self.node} and encode again"
            )

    @property
    def recipe(self) -> Recipe:
        """The recipe the array was planned with."""
        return Recipe.from_dict(self.attributes["recipe"])

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self.chunk_rows)

    def rows(self, k: int) -> range:
        """Rows of chunk ``k``."""
        return range(k * self.chunk_rows, min((k + 1) * self.chunk_rows, self.shape[0]))

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_chunk(self, k: int, values: np.ndarray, *, absent: Mapping[int, str] | None = None, device: str) -> bool:
        """Write chunk ``k`` whole and put its receipt; see :mod:`spared_fm.store.commit` for several writers.

        Parameters
        ----------
        k
            Chunk number.
        values
            Embeddings of exactly the chunk's rows, shape (rows, dim); cast to the stored dtype.
        absent
            Row number → reason, for patches that could not be read; their rows are stored as NaN.
        device
            Where it was computed, for the receipt.

        Returns
        -------
        bool
            False when another writer's receipt was there first.

        Raises
        ------
        InputError
            The values are not exactly one chunk, or not finite in a row that is not absent.
        OverflowError
            A value does not fit the stored dtype.
        """
        rows = self.rows(k)
        absent = dict(absent or {})
        if values.shape != (len(rows), self.shape[1]):
            raise InputError(f"chunk {k} of {self.node} takes {(len(rows), self.shape[1])} values, not {values.shape}")
        present = np.array([row not in absent for row in rows])
        if not np.isfinite(values[present]).all():
            bad = [row for row, ok in zip(rows, np.isfinite(values).all(1) | ~present, strict=True) if not ok]
            raise InputError(
                f"slide {self.slide}: encoder {self.recipe.encoder} gave NaN or infinity for spot row {bad[0]} "
                f"({len(bad)} in chunk {k}); check its weights or use a wider compute dtype"
            )
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        if not np.isfinite(stored[present]).all():
            raise OverflowError(f"slide {self.slide}, chunk {k}: embeddings overflow {self.dtype.name}")
        stored[~present] = np.nan
        data = self._encode_chunk(k, stored)
        receipt = {
            "chunk": k,
            "rows": [rows.start, rows.stop],
            "bytes": len(data),
            "crc32c": checksum(data),
            "absent": {str(row): reason for row, reason in sorted(absent.items())},
            "embedding_id": self.attributes["embedding_id"],
            "device": device,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return commit(self.layout.files, self.node, k, data, receipt)

    def _encode_chunk(self, k: int, stored: np.ndarray) -> bytes:
        """Bytes of the chunk object: what zarr writes for it, captured in memory so that our own primitive makes it durable."""
        memory = MemoryStore()
        sync(memory.set("zarr.json", cpu.Buffer.from_bytes(self._metadata)))
        array = zarr.open_array(memory, mode="r+").with_config(
            {"write_empty_chunks": True}
        )  # a chunk may be all absent
        array[self.rows(k).start : self.rows(k).stop] = stored
        buffer = sync(memory.get(f"c/{k}/0", default_buffer_prototype()))
        if buffer is None:
            raise RuntimeError(f"zarr wrote no chunk {k}")
        return buffer.to_bytes()

    # -- receipts ------------------------------------------------------------------------------------------------------

    def receipt(self, k: int) -> dict[str, Any] | None:
        """Receipt of chunk ``k``, or None while it is unfinished."""
        if k not in self._receipts:
            try:
                receipt = json.loads(self.layout.files.read(self._receipt_key(k)))
            except FileNotFoundError:
                return None
            except ValueError as error:
                raise InputError(
                    f"{self.layout.root / self._receipt_key(k)} is damaged; delete it and encode again"
                ) from error
            if receipt.get("embedding_id") != self.attributes["embedding_id"]:
                raise InputError(
                    f"{self.layout.root / self._receipt_key(k)} belongs to another embedding; delete it and encode again"
                )
            self._receipts[k] = receipt
        return self._receipts[k]

    def missing(self) -> list[int]:
        """Chunks without a receipt."""
        there = set(self.layout.files.list(f"{self.node}/receipts"))
        return [k for k in range(self.n_chunks) if f"{k}.json" not in there]

    def _receipt_key(self, k: int) -> str:
        return f"{self.node}/receipts/{k}.json"

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Embeddings of ``rows`` (all by default), shape (rows, dim), in the stored dtype; absent rows are NaN.

        Raises
        ------
        IncompleteError
            A row's chunk has no receipt.
        """
        wanted = np.arange(self.shape[0])[slice(None) if rows is None else rows]
        self._require({int(k) for k in np.unique(wanted // self.chunk_rows)})
        if self._raw:
            return self._map().gather(wanted)
        return self._through_zarr(wanted)

    def blocks(self) -> Iterator[tuple[range, np.ndarray]]:
        """Yield (rows, values) chunk by chunk; uncompressed chunks are mapped, not copied."""
        self._require(set(range(self.n_chunks)))
        for k in range(self.n_chunks):
            rows = self.rows(k)
            yield rows, self._map().chunk(k) if self._raw else self.read(slice(rows.start, rows.stop))

    def absent(self) -> dict[int, str]:
        """Row number → reason of every absent row in the finished chunks."""
        found: dict[int, str] = {}
        for k in range(self.n_chunks):
            found |= {int(row): reason for row, reason in ((self.receipt(k) or {}).get("absent") or {}).items()}
        return found

    def _require(self, chunks: set[int]) -> None:
        missing = sorted(k for k in chunks if self.receipt(k) is None)
        if missing:
            raise IncompleteError(
                f"slide {self.slide}: {len(missing)} of {self.n_chunks} chunks of {self.key!r} are not finished "
                f"(first: {missing[0]}); run `spared-fm encode --store {self.layout.root} --slide {self.slide} "
                f"--encoder {self.attributes.get('encoder_argument', self.recipe.encoder)}` again"
            )

    def _map(self) -> MappedRows:
        if self._mapped is None:
            self._mapped = MappedRows(self._chunk_file, self.shape, self.chunk_rows, self.dtype)
        return self._mapped

    def _chunk_file(self, k: int) -> Path:
        return self.layout.files.local_file(f"{self.node}/c/{k}/0", (self.receipt(k) or {}).get("crc32c", ""))

    def _through_zarr(self, wanted: np.ndarray) -> np.ndarray:
        if self._array is None:
            self._array = zarr.open_array(self.layout.zarr_store(self.node), mode="r", zarr_format=3)
        try:
            values = np.asarray(self._array.oindex[wanted])
        except (RuntimeError, ValueError) as error:  # a checksum or a codec of zarr's
            raise InputError(f"slide {self.slide}: a chunk of {self.key!r} is damaged ({error}); {_MEND}") from error
        # zarr gives NaN for an object that is gone; ours is NaN only where the receipt says so
        for position in np.flatnonzero(np.isnan(values).any(axis=1)):
            k = int(wanted[position] // self.chunk_rows)
            if str(wanted[position]) not in (self.receipt(k) or {}).get("absent", {}):
                raise InputError(f"slide {self.slide}: chunk {k} of {self.key!r} is gone or damaged; {_MEND}")
        return values


def slide_record(layout: Layout, slide: str) -> dict[str, Any]:
    """Our record of a slide (fingerprint, spots digest, image, mpp …); raises :class:`InputError` for an unknown slide."""
    record = layout.attributes(layout.slide(slide))
    if record is None:
        known = ", ".join(layout.slides()[:8]) or "none"
        raise InputError(f"{layout.root}: no slide {slide!r} in the store (slides: {known})")
    return record


def _differences(old: Recipe, new: Recipe) -> str:
    before, after = old.as_dict(), new.as_dict()
    return ", ".join(name for name in after if before[name] != after[name])
