"""The extract room: plan → dask tasks → chunks. Knows store, slides and encoders."""
