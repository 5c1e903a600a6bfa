"""Rm: remove slides, embeddings with their index, cohorts, heads and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.layout import key_name
from spared_fm.study import matrix_kept
from spared_fm.study.encode import choose_slides
from spared_fm.study.index_open import INDEXES, folder
from spared_fm.study.usage import total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.store.layout import Layout


def rm(
    layout: Layout,
    *,
    slides: str | Sequence[str] | None = None,
    encoder: str | None = None,
    cohort: str | None = None,
    head: str | None = None,
    benchmark: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Remove one kind of thing; what else depends on it is named and refused unless forced.

    ====================  ======================================================
    given                 removed
    ====================  ======================================================
    slides                the slides with their embeddings
    encoder               these embeddings of all slides, and their index
    slides and encoder    these embeddings of these slides
    cohort                the cohort with what completes it
    cohort and head       that fitted head of the cohort
    benchmark             that declared benchmark with its cells
    ====================  ======================================================

    Parameters
    ----------
    layout
        The store.
    slides
        Glob or ids.
    encoder
        Array key, or encoder name where one array fits it.
    cohort, head
        Cohort name; name of a fitted run.
    benchmark
        Name of a declared benchmark.
    force
        Remove slides that a cohort uses (``verify`` reports the cohort's drift then), or a cohort with its fitted heads and
        with its cells of benchmarks.
    dry_run
        Only list.

    Returns
    -------
    list of dict
        What was removed: kind, name, bytes, removed.

    Raises
    ------
    InputError
        Nothing of that name, nothing named, or something depends on it. Nothing is removed then.
    """
    if [slides is not None or encoder is not None, cohort is not None, benchmark is not None].count(True) != 1:
        raise InputError(
            "rm takes --slide and/or --encoder, or --cohort (with --head NAME for one fitted head), or --benchmark"
        )
    if head is not None and cohort is None:
        raise InputError("--head goes with --cohort")
    if head is not None and cohort is not None:
        doomed = [("head", f"{cohort}/{head}", layout.head(cohort, head))]
        if head not in layout.files.list(f"heads/{cohort}"):
            runs = ", ".join(layout.files.list(f"heads/{cohort}")) or "none"
            raise InputError(f"{layout.root}: cohort {cohort!r} has no head {head!r} (heads: {runs})")
    elif benchmark is not None:
        if benchmark not in (known := matrix_kept.names(layout)):
            raise InputError(f"{layout.root}: no benchmark {benchmark!r} (benchmarks: {', '.join(known) or 'none'})")
        doomed = [("benchmark", benchmark, matrix_kept.folder(benchmark))]
    elif cohort is not None:
        doomed = _cohort(layout, cohort, force)
    elif encoder is not None:
        doomed = _embeddings(layout, choose_slides(layout, slides), encoder)
    else:
        doomed = _slides(layout, choose_slides(layout, slides), force)
    rows = [
        {"kind": kind, "name": name, "bytes": total(layout, key), "removed": not dry_run} for kind, name, key in doomed
    ]
    if not dry_run:
        for _, _, key in doomed:
            layout.files.remove(key)
    return rows


def _slides(layout: Layout, slides: list[str], force: bool) -> list[tuple[str, str, str]]:
    if not force:
        for cohort in layout.cohorts():
            used = sorted(set(slides) & set((layout.attributes(layout.cohort(cohort)) or {}).get("parents", {})))
            if used:
                raise InputError(
                    f"slide {used[0]} is used by cohort {cohort!r}; remove that first (`spared-fm rm --cohort {cohort}`), "
                    "or use --force"
                )
    grids = [slide for slide in slides if layout.files.exists(layout.tokens(slide))]
    return [
        *(("tokens", slide, layout.tokens(slide)) for slide in grids),
        *(("slide", slide, layout.slide(slide)) for slide in slides),
    ]


def _embeddings(layout: Layout, slides: list[str], encoder: str) -> list[tuple[str, str, str]]:
    doomed = []
    for slide in slides:
        keys = layout.embeddings(slide)
        plain = key_name(encoder)
        exact = [key for key in dict.fromkeys((encoder, plain)) if key in keys]
        fits = exact[:1] or [key for key in keys if key.split("@")[0] == plain]
        if len(fits) > 1:
            raise InputError(f"slide {slide}: several embeddings fit {encoder!r}: name one of {', '.join(fits)}")
        doomed += [("embedding", f"{slide}/{key}", layout.embedding(slide, key)) for key in fits]
    if not doomed:
        raise InputError(f"{layout.root}: none of the {len(slides)} slides has embeddings of {encoder!r}")
    gone = {name.partition("/")[2] for _, name, _ in doomed}
    others = {key for slide in layout.slides() if slide not in slides for key in layout.embeddings(slide)}
    # Before what it is of: an index that is left alone can't be brought up to date.
    return [("index", key, folder(key)) for key in layout.files.list(INDEXES) if key in gone - others] + doomed


def _cohort(layout: Layout, cohort: str, force: bool) -> list[tuple[str, str, str]]:
    if cohort not in layout.cohorts():
        raise InputError(f"{layout.root}: no cohort {cohort!r} (cohorts: {', '.join(layout.cohorts()) or 'none'})")
    heads = layout.files.list(f"heads/{cohort}")
    if heads and not force:
        raise InputError(
            f"cohort {cohort!r} has {len(heads)} fitted heads, e.g. {heads[0]}; remove them too with --force"
        )
    cells = [
        (name, cell)
        for name in matrix_kept.names(layout)
        for cell, found in matrix_kept.cells(layout, name)
        if found["cell"]["cohort"] == cohort
    ]
    if cells and not force:
        raise InputError(
            f"cohort {cohort!r} has {len(cells)} cells in benchmarks, e.g. in {cells[0][0]}; remove them too with --force"
        )
    doomed = [("cohort", cohort, layout.cohort(cohort))]
    doomed += [("cell", f"{name}/{cell}", key) for name, cell in cells for key in matrix_kept.files(layout, name, cell)]
    if heads:
        doomed.append(("heads", cohort, f"heads/{cohort}"))
    if layout.files.list(f"completers/{cohort}"):  # fitted again when they are wanted again
        doomed.append(("completers", cohort, f"completers/{cohort}"))
    return doomed
