"""Slide and cohort nodes: AnnData elements, staged on local disk and published whole."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import zarr

from spared_fm.errors import InputError
from spared_fm.store.layout import FORMAT, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MATRIX_ROWS = 1024
"""Rows per chunk of a dense matrix: AnnData's default splits rows over column blocks, and a row read touches many files."""


@contextlib.contextmanager
def zarr_v3() -> Iterator[None]:
    """Make anndata write Zarr v3 without sharding, whatever the user's settings are."""
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        yield


class Rows:
    """A dense matrix of a node being written, row by row; what is appended reaches the disk in whole chunks."""

    def __init__(self, array: zarr.Array) -> None:
        self._array = array
        self._held = np.empty((0, array.shape[1]), array.dtype)
        self._written = 0

    def append(self, values: np.ndarray) -> None:
        """Add rows below those there are; they are cast to the matrix's dtype."""
        held = np.concatenate([self._held, values.astype(self._held.dtype, copy=False)])
        whole = len(held) // self._array.chunks[0] * self._array.chunks[0]
        self._write(held[:whole])
        self._held = held[whole:].copy()

    def close(self) -> None:
        """Write what is left, and give the matrix the rows it has got."""
        self._write(self._held)
        self._held = self._held[:0]
        self._array.resize((self._written, self._array.shape[1]))

    def read(self, rows: slice) -> np.ndarray:
        """Read rows back; for a matrix that is closed."""
        return np.asarray(self._array[rows])

    def _write(self, values: np.ndarray) -> None:
        if len(values):
            self._array[self._written : self._written + len(values)] = values
            self._written += len(values)


class Draft:
    """A node that is being written and that nobody sees: its layers may come row by row, the rest comes last."""

    def __init__(self, layout: Layout, key: str, folder: Path) -> None:
        self._layout, self._key, self._folder = layout, key, folder
        self._layers: dict[str, Rows] = {}

    def layer(self, name: str, n_columns: int, dtype: np.typing.DTypeLike, most_rows: int) -> Rows:
        """Begin a dense layer of at most ``most_rows`` rows, in whole-row chunks of ``min(1024, most_rows)``."""
        array = zarr.create_array(
            self._folder / "layers" / name,
            shape=(most_rows, n_columns),
            chunks=(max(1, min(MATRIX_ROWS, most_rows)), n_columns),
            dtype=dtype,
            zarr_format=3,
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )
        self._layers[name] = Rows(array)
        return self._layers[name]

    def publish(self, adata: ad.AnnData, attributes: dict[str, Any]) -> None:
        """Add the rest of the node and our record of it, and make it appear: complete, or not at all.

        Parameters
        ----------
        adata
            All of the node but the layers that came row by row, with as many rows as these. It is not changed. Dense layers and
            ``obsm`` matrices get whole-row chunks. Nothing is consolidated.
        attributes
            Our record of the node, kept in the group's attributes.

        Raises
        ------
        InputError
            The node was written by another process meanwhile.
        """
        shell = ad.AnnData(X=adata.X, obs=adata.obs, var=adata.var, uns=adata.uns, obsp=adata.obsp, varm=adata.varm)
        with zarr_v3():
            parent = zarr.open_group(self._folder, mode="a", zarr_format=3)
            ad.io.write_elem(parent, "node", shell)
            group = zarr.open_group(self._folder / "node", mode="r+")
            for name in ("layers", "obsm"):
                for item, value in getattr(adata, name).items():
                    ad.io.write_elem(group[name], item, value, dataset_kwargs=_chunks(value))
        for name, rows in self._layers.items():
            rows.close()
            (self._folder / "layers" / name).rename(self._folder / "node" / "layers" / name)
        group.attrs[FORMAT] = attributes
        files = self._layout.files
        try:
            files.publish(self._folder / "node", self._key)
        except OSError as error:
            if files.exists(f"{self._key}/zarr.json"):
                raise InputError(f"{self._layout.root / self._key} was written by another process meanwhile") from error
            raise


@contextlib.contextmanager
def new_node(layout: Layout, key: str) -> Iterator[Draft]:
    """Begin the node ``key``; it appears with :meth:`Draft.publish`, and without it nothing is left.

    Parameters
    ----------
    layout
        The store.
    key
        Node key, from :meth:`Layout.slide` or :meth:`Layout.cohort`.

    Raises
    ------
    InputError
        The node exists already.
    """
    if layout.files.exists(f"{key}/zarr.json"):
        raise InputError(f"{layout.root / key} exists already")
    with layout.files.staging_folder() as staging:
        yield Draft(layout, key, staging)


def write_node(layout: Layout, key: str, adata: ad.AnnData, attributes: dict[str, Any]) -> None:
    """Write ``adata`` as the node ``key``, see :func:`new_node` and :meth:`Draft.publish`."""
    with new_node(layout, key) as draft:
        draft.publish(adata, attributes)


def write_layer(layout: Layout, cohort: str, name: str, values: np.ndarray, record: dict[str, Any]) -> None:
    """Add or replace a dense layer of a cohort: staged, published, then registered in the cohort's attributes.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name.
    name
        Layer name.
    values
        Matrix (spots, genes).
    record
        What made the layer (method, parameters, parent layer …).
    """
    node = layout.cohort(cohort)
    key = f"{node}/layers/{name}"
    with layout.files.staging_folder() as staging, zarr_v3():
        parent = zarr.open_group(staging, mode="w", zarr_format=3)
        ad.io.write_elem(parent, name, values, dataset_kwargs=_chunks(values))
        if layout.files.exists(key):
            # Unregister first: between removal and publishing readers must not be offered a layer that is not there.
            layout.update_attributes(node, lambda known: {**known, "layers": _without(known, name)})
            layout.files.remove(key)
        layout.files.publish(staging / name, key)
    layout.update_attributes(node, lambda known: {**known, "layers": {**_without(known, name), name: record}})


def read_node(layout: Layout, key: str) -> ad.AnnData:
    """Read a whole node with plain anndata."""
    return ad.read_zarr(zarr.open_group(layout.zarr_store(key), mode="r", zarr_format=3))


def read_elem(layout: Layout, key: str) -> Any:
    """Read one element below a node (``…/obs``, ``…/layers/counts``)."""
    return ad.io.read_elem(zarr.open(layout.zarr_store(key), mode="r", zarr_format=3))


def _without(attributes: dict[str, Any], layer: str) -> dict[str, Any]:
    return {name: record for name, record in attributes.get("layers", {}).items() if name != layer}


def read_rows(layout: Layout, key: str, rows: range | None = None) -> np.ndarray:
    """Read consecutive rows (all by default) of a dense array below a node; only the chunks they lie in are fetched."""
    array = zarr.open_array(layout.zarr_store(key), mode="r", zarr_format=3)
    return np.asarray(array[:] if rows is None else array[rows.start : rows.stop])


def read_index(layout: Layout, key: str, rows: range | None = None) -> np.ndarray:
    """Read the index (object array of str) of a data frame below a node, or consecutive rows of it."""
    name = zarr.open_group(layout.zarr_store(key), mode="r", zarr_format=3).attrs["_index"]
    return read_rows(layout, f"{key}/{name}", rows)


def _chunks(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.size:
        return {"chunks": (min(MATRIX_ROWS, value.shape[0]), value.shape[1])}
    return {}
