"""What to encode: recipes, array keys and the list of unfinished chunks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from spared_fm.errors import InputError
from spared_fm.extract.source import check_extent
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.patches import PatchSpec, check_upsample
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.layout import check_name, slug
from spared_fm.store.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.encoders.builder import Encoder
    from spared_fm.encoders.spec import EncoderSpec
    from spared_fm.store.layout import Layout

UPSAMPLE_WARNING = 2.0
LONG_RUN = 4096
"""Patches from which compiling the resampling (about two seconds per process) pays."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One chunk of one slide: the unit of work, of writing and of loss.

    It holds names and numbers only; a worker builds the encoders itself and checks them against the recipes.

    Attributes
    ----------
    jobs
        (array key, encoder) of every array that is filled from one reading of the patches.
    streams
        Batches in work at once in a worker; 0 lets the worker take all its cores.
    long_run
        Whether there is enough work to compile the resampling for it.
    """

    store: str
    slide: str
    chunk: int
    jobs: tuple[tuple[str, EncoderSpec], ...]
    device: str
    streams: int = 0
    long_run: bool = False


@dataclasses.dataclass
class Plan:
    """The arrays of one encode run and their unfinished chunks.

    Attributes
    ----------
    keys
        Array key of each encoder, the same for all slides.
    recipes
        Recipe of each encoder.
    tasks
        Unfinished chunks, slide by slide.
    patches
        Patches in those chunks, each counted once however many encoders share it.
    done
        Chunks that were finished before.
    warnings
        One line each, e.g. slides that are upsampled more than twofold.
    """

    keys: list[str]
    recipes: list[Recipe]
    tasks: list[Task]
    patches: int
    done: int
    warnings: list[str]


def make_recipe(encoder: Encoder, patch: PatchSpec, store_dtype: str = "float16") -> Recipe:
    """Recipe of ``encoder`` applied to patches cut as ``patch`` says."""
    return Recipe(
        patch_um=patch.um,
        patch_px=patch.px,
        mpp=patch.mpp,
        resampling=patch.resample,
        stain_normalisation="none",
        encoder=encoder.versioned_name,
        weights=encoder.weights,
        transform=encoder.transform.as_data(),
        pooling=encoder.pooling,
        prefix_tokens=encoder.prefix_tokens,
        views="identity",
        compute_dtype=encoder.compute_dtype,
        store_dtype=store_dtype,
    )


def array_key(recipe: Recipe, spec: EncoderSpec) -> str:
    """Key of the array: the encoder's slug for its default recipe, else ``<slug>@<8 hex of the recipe id>``."""
    is_default = (
        spec.is_default and spec.seed == 0 and (recipe.patch_um, recipe.patch_px) == (PatchSpec().um, PatchSpec().px)
    )
    is_default = is_default and recipe.resampling == PatchSpec().resample and recipe.store_dtype == "float16"
    return slug(spec.name) if is_default else f"{slug(spec.name)}@{recipe.id[:8]}"


def make_plan(
    layout: Layout,
    slides: Sequence[str],
    encoders: Sequence[Encoder],
    patch: PatchSpec,
    *,
    keys: Sequence[str | None] | None = None,
    chunk_rows: int | None = None,
    batch_size: int = 32,
    threads: int = 1,
    streams: int = 0,
    store_dtypes: Sequence[str] | None = None,
    max_upsample: float | None = None,
) -> Plan:
    """Create the arrays that are not there and list their unfinished chunks.

    Parameters
    ----------
    layout
        The store.
    slides
        Slide ids.
    encoders
        Built encoders: their digests and dims enter the arrays. Patches are read once for all of them.
    patch
        Patch geometry.
    keys
        Array key per encoder; None, or None for one of them: :func:`array_key`.
    chunk_rows, batch_size, threads
        Fixed in new arrays for their life. Batches are cut by row number and ``threads`` is the number inside one forward
        pass, so a resumed array is byte-identical.
    streams
        Batches in work at once in a worker; changes no byte.
    store_dtypes
        ``float16`` (default) or ``float32`` per encoder.
    max_upsample
        Refuse slides whose patches would be enlarged by more than this factor.

    Raises
    ------
    InputError
        A slide has no image or too coarse a one, its image is gone or another one, or a key is taken by another recipe.
    """
    if (chunk_rows is not None and chunk_rows < 1) or batch_size < 1 or threads < 1:
        raise InputError("chunk rows, batch size and threads must be at least 1")
    recipes = [
        make_recipe(encoder, patch, dtype)
        for encoder, dtype in zip(encoders, store_dtypes or ["float16"] * len(encoders), strict=True)
    ]
    names = [
        check_name(key, "embedding") if key else array_key(recipe, encoder.spec)
        for encoder, recipe, key in zip(encoders, recipes, keys or [None] * len(encoders), strict=True)
    ]
    records = {slide: slide_record(layout, slide) for slide in slides}
    upsample = {}
    for slide, record in records.items():
        _check_image(slide, record)
        upsample[slide] = record["mpp"] / record["image"]["scale"] / patch.mpp
        check_upsample(slide, upsample[slide], max_upsample)
        check_extent(slide, record, patch)
    plan = Plan(names, recipes, [], 0, 0, [])
    for slide, record in records.items():
        if upsample[slide] > UPSAMPLE_WARNING:
            plan.warnings.append(
                f"slide {slide}: its {record['image']['kind']} image is coarse, patches are upsampled {upsample[slide]:.1f}×; "
                "ingest the full-resolution image if you have it (--image)"
            )
        arrays = []
        for encoder, recipe, name in zip(encoders, recipes, names, strict=True):
            settings = {
                "encoder_argument": encoder.spec.name,
                "seed": encoder.spec.seed,
                "batch_size": batch_size,
                "threads": threads,
                "slide_mpp": record["mpp"],
                "image_scale": record["image"]["scale"],
                "achieved_mpp": patch.mpp,
                "upsample": round(upsample[slide], 4),
            }
            arrays.append(
                EmbeddingArray.plan(
                    layout, slide, name, recipe=recipe, dim=encoder.dim, chunk_rows=chunk_rows, settings=settings
                )
            )
        _add_tasks(plan, arrays, encoders, streams)
    if plan.patches >= LONG_RUN:
        plan.tasks = [dataclasses.replace(task, long_run=True) for task in plan.tasks]
    return plan


def _add_tasks(plan: Plan, arrays: Sequence[EmbeddingArray], encoders: Sequence[Encoder], streams: int) -> None:
    """Group a slide's arrays that are cut alike: each group's chunks are read once."""
    groups: dict[tuple[int, int, int], list[tuple[EmbeddingArray, Encoder]]] = {}
    for array, encoder in zip(arrays, encoders, strict=True):
        cut = (array.chunk_rows, array.attributes["batch_size"], array.attributes["threads"])
        groups.setdefault(cut, []).append((array, encoder))
    for members in groups.values():
        wanted: dict[int, list[tuple[str, EncoderSpec]]] = {}
        for array, encoder in members:
            missing = array.missing()
            plan.done += array.n_chunks - len(missing)
            for k in missing:
                wanted.setdefault(k, []).append((array.key, encoder.spec))
        first = members[0][0]
        for k, jobs in sorted(wanted.items()):
            plan.patches += len(first.rows(k))
            store, device = str(first.layout.root), members[0][1].device
            plan.tasks.append(Task(store, first.slide, k, tuple(jobs), device, streams))


def _check_image(slide: str, record: dict) -> None:
    image = record["image"]
    if image is None:
        raise InputError(f"slide {slide} has counts only, nothing to encode; ingest it again with --image FILE")
    try:
        found = fingerprint(image["path"])
    except (OSError, InputError) as error:
        raise InputError(f"slide {slide}: its image {image['path']} can't be read ({error}); put it back") from error
    if found != record["fingerprint"]:
        raise InputError(f"slide {slide}: {image['path']} is no longer the image that was ingested; put that one back")
