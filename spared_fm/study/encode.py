"""Encode: patches of the store's slides → embedding arrays."""

from __future__ import annotations

import fnmatch
import os
from typing import TYPE_CHECKING, Any

from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from spared_fm.slides.patches import PatchSpec
from spared_fm.store.layout import slug
from spared_fm.study.progress import bar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spared_fm.encoders.builder import Encoder
    from spared_fm.extract.plan import Plan
    from spared_fm.extract.run import Summary
    from spared_fm.store.layout import Layout


def encode(
    layout: Layout,
    encoders: str | Sequence[str],
    *,
    slides: str | Sequence[str] | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    key: str | None = None,
    patch_um: float = 112.0,
    patch_px: int = 224,
    device: str = "cpu",
    workers: int = 0,
    scheduler: str | None = None,
    chunk_rows: int = 1024,
    batch_size: int = 32,
    threads: int | None = None,
    store_dtype: str = "float16",
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Encode slides once with each encoder; finished chunks are never computed again.

    Parameters
    ----------
    layout
        The store.
    encoders
        Encoder names (``stain-bank``, ``timm:<model>``).
    slides
        Glob or ids of slides; by default all slides that have an image.
    weights, seed
        See :func:`spared_fm.encoders.spec.resolve`.
    key
        Array key instead of the encoder's own.
    patch_um, patch_px
        Patch side in µm and in pixels after resampling; their ratio is the mpp.
    device
        ``cpu``, ``cuda``, ``mps``.
    workers, scheduler
        See :func:`spared_fm.extract.run.run`.
    chunk_rows, batch_size, threads
        Fixed in new arrays for their life.
    store_dtype
        ``float16`` (default; changed to ``float32`` on overflow) or ``float32``.
    progress
        Show a bar with patches/s.

    Returns
    -------
    list of dict
        One row per encoder: encoder, key, recipe_id, dim, slides, patches (encoded now), chunks_done_before, seconds,
        patches_per_second, warnings.

    Raises
    ------
    InputError
        Unknown encoder or slide, no image, weights that don't fit, a key taken by another recipe.
    """
    names = [encoders] if isinstance(encoders, str) else list(encoders)
    if weights is not None and len(names) > 1:
        raise InputError("--weights goes with one --encoder")
    if store_dtype not in ("float16", "float32"):
        raise InputError(f"store dtype {store_dtype!r} is not float16 or float32")
    specs = [resolve(name, weights, seed=seed) for name in names]
    patch = PatchSpec(patch_um, patch_px)
    chosen = choose_slides(layout, slides, with_image=True)

    from spared_fm.encoders.builder import build
    from spared_fm.extract.plan import make_plan
    from spared_fm.extract.run import run
    from spared_fm.extract.task import keep

    rows = []
    for spec in specs:
        encoder = build(spec, device=device)
        keep(encoder)

        def once(dtype: str, encoder: Encoder = encoder) -> tuple[Plan, Summary]:
            plan = make_plan(
                layout,
                chosen,
                encoder,
                patch,
                key=key,
                chunk_rows=chunk_rows,
                batch_size=batch_size,
                threads=threads or max(1, (os.cpu_count() or 1) // max(1, workers)),
                store_dtype=dtype,
            )
            with bar(f"encode {plan.key}", plan.patches, "patches", show=progress) as advance:
                return plan, run(plan, workers=workers, scheduler=scheduler, on_done=lambda done: advance(done.patches))

        try:
            plan, summary = once(store_dtype)
        except OverflowError as error:
            if store_dtype == "float32":
                raise InputError(f"{error}; this encoder's output has no use") from error
            plan, summary = once("float32")
            plan.warnings.append(f"{error}: stored as float32 instead, under {plan.key}")
        rows.append(
            {
                "encoder": spec.name,
                "key": plan.key,
                "recipe_id": plan.recipe.id,
                "dim": encoder.dim,
                "slides": len(chosen),
                "patches": summary.patches,
                "chunks_done_before": plan.done,
                "seconds": round(summary.wall, 3),
                "patches_per_second": round(summary.patches / summary.wall, 2) if summary.patches else None,
                "stages": {stage: round(value, 3) for stage, value in summary.seconds.items()},
                "warnings": plan.warnings,
            }
        )
    return rows


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
    exact = [key for key in dict.fromkeys((encoder, slug(encoder))) if key in keys]
    fits = exact[:1] or [key for key in keys if key.split("@")[0] == slug(encoder)]
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
