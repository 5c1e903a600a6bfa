"""Encode: patches of the store's slides → embedding arrays."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import key_name
from spared_fm.study.progress import bar
from spared_fm.study.runs import record_run
from spared_fm.study.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.encoders.builder import Encoder
    from spared_fm.extract.run import Summary
    from spared_fm.store.layout import Layout


def encode(
    layout: Layout,
    encoders: str | Sequence[str],
    *,
    slides: str | Sequence[str] | None = None,
    device: str = "cpu",
    workers: int = 0,
    scheduler: str | None = None,
    max_upsample: float | None = None,
    progress: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Encode slides once with each encoder, reading each patch once; finished chunks are never computed again.

    Parameters
    ----------
    layout
        The store.
    encoders
        Encoder names (``uni``, ``stain-bank``, ``timm:<model>``).
    slides
        Glob or ids of slides; by default all slides that have an image.
    device
        ``cpu``, ``cuda``, ``mps``.
    workers, scheduler
        See :func:`spared_fm.extract.run.run`.
    max_upsample
        Refuse slides whose patches would be enlarged by more than this factor; by default more than 2 is warned of.
    progress
        Show a bar with patches/s.
    **options
        How the vectors are made, see :class:`spared_fm.study.wanted.Wanted`: ``weights``, ``patch_um``, ``views``, ``tokens`` …

    Returns
    -------
    list of dict
        One row per array: encoder, key, recipe_id, dim, slides, patches (encoded now), chunks_done_before, seconds,
        patches_per_second, stages (seconds per stage, summed over cores, of all encoders together), absent, failed (slide →
        reason, of slides left out), warnings.

    Raises
    ------
    InputError
        Unknown encoder or slide, no image, weights that don't fit, a key taken by another recipe.
    """
    if workers < 0:
        raise InputError("--workers must be 0 (in this process) or more")
    wanted = Wanted(encoders, **options)
    jobs = wanted.jobs()
    chosen = choose_slides(layout, slides, with_image=True)

    from spared_fm.extract.plan import make_plan
    from spared_fm.extract.run import run
    from spared_fm.extract.task import EmbeddingOverflowError, cores, get

    # A login node has no GPU: there the encoder is built for its recipe only, and the cluster's workers use the device.
    here = "cpu" if scheduler else device
    built = [dataclasses.replace(get(job.spec, here), device=device) for job in jobs]
    dtypes = [wanted.store_dtype] * len(built)
    overflows: list[str] = []
    while True:
        plan = make_plan(
            layout,
            chosen,
            built,
            [job.patch for job in jobs],
            keys=[job.key for job in jobs],
            chunk_rows=wanted.chunk_rows,
            batch_size=wanted.batch_size,
            threads=wanted.threads,
            streams=max(1, cores() // wanted.threads // workers) if workers else 0,
            store_dtypes=dtypes,
            max_upsample=max_upsample,
        )
        try:
            with bar(f"encode {', '.join(plan.keys)}", plan.patches, "patches", show=progress) as advance:
                summary = run(plan, workers=workers, scheduler=scheduler, on_patches=advance)
            break
        except EmbeddingOverflowError as error:
            position = plan.keys.index(error.key)
            if dtypes[position] == "float32":
                raise InputError(f"{error}; this encoder's output has no use") from error
            dtypes[position] = "float32"
            _drop_unfinished(layout, chosen, error.key)
            overflows.append(f"{error}: stored as float32 instead")
    warnings = [*_slow(built), *plan.warnings, *overflows, *_quarantined(summary)]
    rows = [
        {
            "encoder": encoder.spec.name,
            "key": name,
            "recipe_id": recipe.id,
            "dim": encoder.dim,
            "slides": len(chosen) - len(plan.failed),
            "patches": summary.patches,
            "chunks_done_before": plan.done,
            "seconds": round(summary.wall, 3),
            "patches_per_second": round(summary.patches / summary.wall, 2) if summary.patches else None,
            "stages": {stage: round(value, 3) for stage, value in summary.seconds.items()},
            "absent": sum(len(rows) for rows in summary.absent.values()),
            "failed": plan.failed,
            "warnings": warnings if position == 0 else [],
        }
        for position, (encoder, name, recipe) in enumerate(zip(built, plan.keys, plan.recipes, strict=True))
    ]
    if summary.patches:
        record_run(
            layout,
            "encode",
            {
                "keys": plan.keys,
                "slides": chosen,
                "patches": summary.patches,
                "seconds": summary.wall,
                "stages": summary.seconds,
                "device": device,
                "workers": workers,
                "scheduler": scheduler,
            },
        )
    return rows


def _slow(encoders: Sequence[Encoder]) -> list[str]:
    """One line per encoder that computes in half precision on a CPU."""
    return [
        f"encoder {encoder.spec.name} computes in {encoder.compute_dtype}, which is slow on a CPU: --precision float32 is "
        "faster there, and another recipe"
        for encoder in encoders
        if encoder.device == "cpu" and encoder.compute_dtype != "float32"
    ]


def _quarantined(summary: Summary) -> list[str]:
    """One line per slide with patches that could not be read."""
    return [
        f"slide {slide}: {len(rows)} patches can't be read, their rows are marked absent (first: row {min(rows)}, "
        f"{rows[min(rows)]})"
        for slide, rows in sorted(summary.absent.items())
    ]


def _drop_unfinished(layout: Layout, slides: Sequence[str], key: str) -> None:
    """Remove arrays that can never be finished, so that nobody waits for them under the encoder's own name."""
    for slide in slides:
        if layout.attributes(layout.embedding(slide, key)) is not None and EmbeddingArray(layout, slide, key).missing():
            layout.files.remove(layout.embedding(slide, key))


def choose_slides(layout: Layout, slides: str | Sequence[str] | None, *, with_image: bool = False) -> list[str]:
    """Find slides by glob or ids.

    Parameters
    ----------
    layout
        The store.
    slides
        Glob, list of ids, or None for all.
    with_image
        With None: leave out slides that have counts only. Slides that were named are never left out silently.

    Raises
    ------
    InputError
        Nothing matches.
    """
    known = layout.slides()
    if slides is None:
        chosen = [s for s in known if not with_image or (layout.attributes(layout.slide(s)) or {}).get("image")]
        if not chosen:
            what = "slides with an image" if with_image else "slides"
            raise InputError(f"{layout.root}: there are no {what} in the store yet; `spared-fm ingest` adds them")
        return chosen
    patterns = [slides] if isinstance(slides, str) else list(slides)
    chosen = []
    for pattern in patterns:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise InputError(f"{layout.root}: no slide matches {pattern!r} (slides: {', '.join(known[:8]) or 'none'})")
        chosen += [slide for slide in matched if slide not in chosen]
    return chosen


def find_key(layout: Layout, slides: Sequence[str], encoder: str) -> str:
    """Find the array key that ``encoder`` (a name, or a key itself) means on ``slides``.

    Raises
    ------
    InputError
        A slide has no such embeddings, or several arrays fit.
    """
    keys = layout.embeddings(slides[0])
    plain = key_name(encoder)
    exact = [key for key in dict.fromkeys((encoder, plain)) if key in keys]
    fits = exact + [key for key in keys if key.split("@")[0] == plain and key not in exact]
    shared = [key for key in fits if all(layout.attributes(layout.embedding(slide, key)) for slide in slides[1:])]
    # the plain name is the default recipe's, where all slides have it
    fits = shared[:1] if set(shared[:1]) & set(exact) else shared or fits
    if len(fits) > 1:
        raise InputError(f"slide {slides[0]}: several embeddings fit {encoder!r}: name one of {', '.join(fits)}")
    if not fits:
        raise InputError(
            f"slide {slides[0]} has no embeddings of {encoder!r} (it has: {', '.join(keys) or 'none'}); run "
            f"`spared-fm encode --store {layout.root} --encoder {encoder}`"
        )
    return _same_key_everywhere(layout, slides, fits[0])


def _same_key_everywhere(layout: Layout, slides: Sequence[str], key: str) -> str:
    recipes: dict[str, str] = {}
    for slide in slides:
        attributes = layout.attributes(layout.embedding(slide, key))
        if attributes is None:
            raise InputError(f"slide {slide} has no embeddings {key!r}; encode it with the same recipe first")
        recipes.setdefault(attributes["recipe_id"], slide)
    if len(recipes) > 1:
        first, second = list(recipes.values())[:2]
        raise InputError(
            f"embeddings {key!r} of slides {first} and {second} were made with different recipes; encode again"
        )
    return key
