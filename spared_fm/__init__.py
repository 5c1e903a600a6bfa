"""spared-fm: a feature and embedding store for histology with spatial transcriptomics.

>>> import spared_fm
>>> study = spared_fm.open("my-store")           # doctest: +SKIP
>>> study.encode("stain-bank")                   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from spared_fm.study.api import Study

__version__ = "0.1.0"


def open(path: str | Path, *, create: bool = False) -> Study:  # noqa: A001 (the verb users expect, as in `zarr.open`)
    """Open a store.

    Parameters
    ----------
    path
        The store's folder.
    create
        Make an empty store where there is none.

    Returns
    -------
    Study
        An object with the verbs: ingest, encode, cohort, complete, fit, predict, benchmark, search.

    Raises
    ------
    spared_fm.errors.InputError
        There is no store at ``path``, or something that isn't one.
    """
    from spared_fm.study.api import Study  # heavy imports happen below, verb by verb

    return Study(path, create=create)
