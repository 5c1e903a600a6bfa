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

MATRIX_ROWS = 1024
"""Rows per chunk of a dense matrix: AnnData's default splits rows over column blocks, and a row read touches many files."""


@contextlib.contextmanager
def zarr_v3() -> Iterator[None]:
    """Make anndata write Zarr v3 without sharding, whatever the user's settings are."""
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        yield


def write_node(layout: Layout, key: str, adata: ad.AnnData, attributes: dict[str, Any]) -> None:
    """Write ``adata`` as the node ``key``: complete, or not at all.

    Dense layers and ``obsm`` matrices get whole-row chunks of ``min(1024, n)`` rows. Nothing is consolidated.

    Parameters
    ----------
    layout
        The store.
    key
        Node key, from :meth:`Layout.slide` or :meth:`Layout.cohort`.
    adata
        What to write. It is not changed.
    attributes
        Our record of the node, kept in the group's attributes.

    Raises
    ------
    InputError
        The node exists already.
    """
    if layout.files.exists(f"{key}/zarr.json"):
        raise InputError(f"{layout.root / key} exists already")
    shell = ad.AnnData(X=adata.X, obs=adata.obs, var=adata.var, uns=adata.uns, obsp=adata.obsp, varm=adata.varm)
    with layout.files.staging_folder() as staging, zarr_v3():
        parent = zarr.open_group(staging, mode="w", zarr_format=3)
        ad.io.write_elem(parent, "node", shell)
        group = zarr.open_group(staging / "node", mode="r+")
        for name in ("layers", "obsm"):
            for item, value in getattr(adata, name).items():
                ad.io.write_elem(group[name], item, value, dataset_kwargs=_chunks(value))
        group.attrs[FORMAT] = attributes
        try:
            layout.files.publish(staging / "node", key)
        except OSError as error:
            if layout.files.exists(f"{key}/zarr.json"):
                raise InputError(f"{layout.root / key} was written by another process meanwhile") from error
            raise


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
