"""What to encode: recipes, array keys and the list of unfinished chunks."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from spared_fm.errors import InputError
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.patches import PatchSpec
from spared_fm.store.embeddings import CHUNK_ROWS, EmbeddingArray, slide_record
from spared_fm.store.layout import check_name, slug
from spared_fm.store.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.encoders.builder import Encoder
    from spared_fm.encoders.spec import EncoderSpec
    from spared_fm.store.layout import Layout

UPSAMPLE_WARNING = 2.0


@dataclasses.dataclass(frozen=True)
class Task:
    """One chunk of one array: the unit of work, of writing and of loss.

    It holds names and numbers only; a worker builds the encoder itself, from ``spec``, and checks it against the recipe.
    """

    store: str
    slide: str
    key: str
    chunk: int
    spec: EncoderSpec
    device: str


@dataclasses.dataclass
class Plan:
    """The arrays of one encode run and their unfinished chunks.

    Attributes
    ----------
    key
        Array key, the same for all slides.
    tasks
        Unfinished chunks, slide by slide.
    patches
        Spots in those chunks.
    done
        Chunks that were finished before.
    warnings
        One line each, e.g. slides that are upsampled more than twofold.
    """

    key: str
    recipe: Recipe
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
        transform=encoder.transform,
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
    encoder: Encoder,
    patch: PatchSpec,
    *,
    key: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    batch_size: int = 32,
    threads: int | None = None,
    store_dtype: str = "float16",
) -> Plan:
    """Create the arrays that are not there and list their unfinished chunks.

    Parameters
    ----------
    layout
        The store.
    slides
        Slide ids.
    encoder
        Built encoder: its digest and dim enter the arrays.
    patch
        Patch geometry.
    key
        Array key; by default :func:`array_key`.
    chunk_rows, batch_size, threads
        Fixed in new arrays for their life. Batches are cut by row number, so a resumed array is byte-identical.
    store_dtype
        ``float16`` or ``float32``.

    Raises
    ------
    InputError
        A slide has no image, its image is gone or another one, or the key is taken by another recipe. Nothing is created then.
    """
    if chunk_rows < 1 or batch_size < 1 or (threads is not None and threads < 1):
        raise InputError("chunk rows, batch size and threads must be at least 1")
    recipe = make_recipe(encoder, patch, store_dtype)
    key = check_name(key, "embedding") if key else array_key(recipe, encoder.spec)
    records = {slide: slide_record(layout, slide) for slide in slides}
    for slide, record in records.items():
        _check_image(slide, record)
    plan = Plan(key, recipe, [], 0, 0, [])
    for slide, record in records.items():
        upsample = record["mpp"] / record["image"]["scale"] / patch.mpp
        if upsample > UPSAMPLE_WARNING:
            plan.warnings.append(
                f"slide {slide}: its {record['image']['kind']} image is coarse, patches are upsampled {upsample:.1f}×; "
                "ingest the full-resolution image if you have it (--image)"
            )
        settings = {
            "encoder_argument": encoder.spec.name,
            "seed": encoder.spec.seed,
            "batch_size": batch_size,
            "threads": threads or os.cpu_count() or 1,
            "slide_mpp": record["mpp"],
            "image_scale": record["image"]["scale"],
            "achieved_mpp": patch.mpp,
            "upsample": round(upsample, 4),
        }
        array = EmbeddingArray.plan(
            layout, slide, key, recipe=recipe, dim=encoder.dim, chunk_rows=chunk_rows, settings=settings
        )
        missing = array.missing()
        plan.done += array.n_chunks - len(missing)
        plan.patches += sum(len(array.rows(k)) for k in missing)
        plan.tasks += [Task(str(layout.root), slide, key, k, encoder.spec, encoder.device) for k in missing]
    return plan


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
