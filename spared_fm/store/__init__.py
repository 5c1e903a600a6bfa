"""The store room: layout, slide and cohort nodes, embedding arrays, recipes, receipts.

Knows zarr and anndata, and nothing of torch, dask or the other rooms.
"""
