"""What to encode: recipes, array keys and the list of unfinished chunks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from spared_fm.encoders.spec import native_patch
from spared_fm.errors import InputError
from spared_fm.extract.source import check_extent
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.patches import PatchSpec, check_upsample
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.layout import TOKENS, check_name, key_name
from spared_fm.store.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spared_fm.encoders.builder import Encoder
    from spared_fm.encoders.spec import EncoderSpec
    from spared_fm.store.layout import Layout

UPSAMPLE_WARNING = 2.0
DEFAULT_GRID = 7
"""Side of the token grid whose key is the encoder's own."""
TOKEN_CHUNK_ROWS = 256
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
    failed
        Slide → reason, of slides that can't be encoded; the others are.
    """

    keys: list[str]
    recipes: list[Recipe]
    tasks: list[Task]
    patches: int
    done: int
    warnings: list[str]
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


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
        views=encoder.spec.views,
        compute_dtype=encoder.compute_dtype,
        store_dtype=store_dtype,
    )


def array_key(recipe: Recipe, spec: EncoderSpec) -> str:
    """Key of the array: the encoder's slug for its default recipe, else ``<slug>@<8 hex of the recipe id>``.

    Token grids lie in ``tokens/``, beside the slide.
    """
    is_default = (
        dataclasses.replace(spec, tokens=0).is_default
        and spec.tokens in (0, DEFAULT_GRID)
        and spec.seed == 0
        and (recipe.patch_um, recipe.patch_px) == native_patch(spec)
        and recipe.resampling == PatchSpec().resample
        and recipe.store_dtype == "float16"
    )
    name = key_name(f"{TOKENS}/{spec.name}" if spec.tokens else spec.name)
    return name if is_default else f"{name}@{recipe.id[:8]}"


def default_chunk_rows(encoders: Sequence[Encoder]) -> int | None:
    """Rows per chunk of new arrays where none are asked for; None: what suits the store's place.

    A row of a token grid is as long as 50 embeddings. All arrays of a run are cut alike, so that one pass fills them.
    """
    return TOKEN_CHUNK_ROWS if any(encoder.spec.tokens for encoder in encoders) else None


def make_plan(
    layout: Layout,
    slides: Sequence[str],
    encoders: Sequence[Encoder],
    patches: PatchSpec | Sequence[PatchSpec],
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
    patches
        Patch geometry, one for all encoders or one each. Encoders of one geometry share the reading.
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
        A key is taken by another recipe; or no slide is left: it has no image or too coarse a one, or its image is gone or
        another one.
    """
    if (chunk_rows is not None and chunk_rows < 1) or batch_size < 1 or threads < 1:
        raise InputError("chunk rows, batch size and threads must be at least 1")
    chunk_rows = chunk_rows or default_chunk_rows(encoders)
    geometries = [patches] * len(encoders) if isinstance(patches, PatchSpec) else list(patches)
    recipes = [
        make_recipe(encoder, patch, dtype)
        for encoder, patch, dtype in zip(encoders, geometries, store_dtypes or ["float16"] * len(encoders), strict=True)
    ]
    names = [
        check_name(key, "embedding") if key else array_key(recipe, encoder.spec)
        for encoder, recipe, key in zip(encoders, recipes, keys or [None] * len(encoders), strict=True)
    ]
    plan = Plan(names, recipes, [], 0, 0, [])
    records = {}
    for slide in slides:
        record = slide_record(layout, slide)
        try:
            _check_image(slide, record)
            for patch in set(geometries):
                check_upsample(slide, _upsample(record, patch), max_upsample)
                check_extent(slide, record, patch)
        except InputError as error:
            if len(slides) == 1:
                raise
            plan.failed[slide] = str(error)  # one bad slide must not cost a cohort its night
            continue
        records[slide] = record
    if not records:
        raise InputError(
            f"none of the {len(slides)} slides can be encoded, the first: {next(iter(plan.failed.values()))}"
        )
    for slide, record in records.items():
        coarse = max(_upsample(record, patch) for patch in geometries)
        if coarse > UPSAMPLE_WARNING:
            plan.warnings.append(
                f"slide {slide}: its {record['image']['kind']} image is coarse, patches are upsampled {coarse:.1f}×; "
                "ingest the full-resolution image if you have it (--image)"
            )
        arrays = []
        for encoder, patch, recipe, name in zip(encoders, geometries, recipes, names, strict=True):
            settings = {
                **encoder.spec.as_settings(),
                "batch_size": batch_size,
                "threads": threads,
                "slide_mpp": record["mpp"],
                "image_scale": record["image"]["scale"],
                "achieved_mpp": patch.mpp,
                "upsample": round(_upsample(record, patch), 4),
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
    groups: dict[tuple[float, ...], list[tuple[EmbeddingArray, Encoder]]] = {}
    for array, encoder in zip(arrays, encoders, strict=True):
        recipe, attributes = array.recipe, array.attributes
        geometry = (recipe.patch_um, recipe.patch_px)
        cut = (array.chunk_rows, attributes["batch_size"], attributes["threads"], *geometry)
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


def _upsample(record: dict, patch: PatchSpec) -> float:
    return record["mpp"] / record["image"]["scale"] / patch.mpp


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
