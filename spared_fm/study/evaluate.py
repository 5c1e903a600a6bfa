"""Fit, predict and benchmark: heads on cached embeddings, joined to targets by spot id."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.nodes import read_elem
from spared_fm.store.recipe import digest
from spared_fm.study.cohort import cohort_record, target
from spared_fm.study.cohort_split import spot_positions, units
from spared_fm.study.encode import choose_slides, find_key
from spared_fm.study.head_inputs import blocks_of, make_fitting

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    import pandas as pd

    from spared_fm.benchmark.runner import Evaluation
    from spared_fm.heads.base import Head
    from spared_fm.store.layout import Layout
    from spared_fm.study.head_inputs import Block


BESIDE = "+"
"""Between the names of encoders whose vectors stand side by side."""


@dataclasses.dataclass
class Joined:
    """Embeddings of a cohort's spots, unit by unit (see :func:`spared_fm.study.cohort_split.units`), rows in cohort order.

    Attributes
    ----------
    key
        Array key; several, one after the other, are joined by ``+``.
    features
        Unit → (spots, dim) in the stored dtype; rows of absent patches are NaN.
    rows
        Unit → row numbers of its spots in the cohort.
    split
        Unit → train, val or test.
    patients
        Unit → patient; its slide where the patient is not known.
    coords
        Unit → pixel (x, y) of its spots, (spots, 2).
    recipe_id
        Recipe of the embeddings; several are joined by ``+``.
    blocks
        What columns each array has brought, in their order.
    """

    key: str
    features: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    split: dict[str, str]
    patients: dict[str, str]
    coords: dict[str, np.ndarray]
    recipe_id: str
    blocks: tuple[Block, ...]


def find_keys(layout: Layout, slides: Sequence[str], encoder: str) -> list[str]:
    """Find the array keys of ``encoder``: a name or a key, or several joined by ``+``.

    Raises
    ------
    InputError
        A slide has no such embeddings, several arrays fit, or an array is named twice.
    """
    keys = [find_key(layout, slides, one.strip()) for one in encoder.split(BESIDE)]
    if len(set(keys)) < len(keys):
        raise InputError(f"encoder {encoder!r} names the same embeddings twice ({', '.join(keys)}); name each once")
    return keys


def current_arrays(layout: Layout, slide: str, keys: Sequence[str]) -> list[EmbeddingArray]:
    """Open a slide's arrays; raises :class:`InputError` where one is of another image or other spots."""
    arrays = [EmbeddingArray(layout, slide, key) for key in keys]
    for array in arrays:
        array.check_current()
    return arrays


def side_by_side(arrays: Sequence[EmbeddingArray], rows: np.ndarray | None = None) -> np.ndarray:
    """Read rows (all by default) of a slide's arrays as one matrix; a patch that one of them lacks is NaN throughout."""
    if len(arrays) == 1:
        return arrays[0].read(rows)
    values = np.concatenate([array.read(rows) for array in arrays], axis=1)
    values[np.isnan(values).any(axis=1)] = np.nan
    return values


def recipe_of(arrays: Sequence[EmbeddingArray]) -> str:
    """Recipe id of a slide's arrays; several are joined by ``+``."""
    return BESIDE.join(array.attributes["recipe_id"] for array in arrays)


def join(layout: Layout, cohort: str, encoder: str) -> Joined:
    """Join the embeddings of ``encoder`` to a cohort's spots by (slide, barcode), never by position.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name.
    encoder
        A name or an array key; ``tokens/<name>`` for a token grid; several joined by ``+`` stand side by side.

    Raises
    ------
    InputError
        Embeddings are missing, unfinished, stale, or lack a spot of the cohort.
    """
    record = cohort_record(layout, cohort)
    obs: pd.DataFrame = read_elem(layout, f"{layout.cohort(cohort)}/obs")
    keys = find_keys(layout, list(record["split"]), encoder)
    spatial = np.asarray(read_elem(layout, f"{layout.cohort(cohort)}/obsm/spatial"), np.float64)
    joined = Joined(BESIDE.join(keys), {}, {}, {}, {}, {}, "", ())
    for unit, (slide, part, rows) in units(obs, record["split"]).items():
        arrays = current_arrays(layout, slide, keys)
        positions = spot_positions(layout, cohort, slide, obs["barcode"].to_numpy()[rows])
        joined.features[unit] = side_by_side(arrays, positions)
        joined.rows[unit] = rows
        joined.split[unit] = part
        joined.patients[unit] = record["patients"].get(slide) or slide
        joined.coords[unit] = spatial[rows, :2]
        joined.recipe_id = recipe_of(arrays)
        joined.blocks = tuple(blocks_of(arrays))
    return joined


def benchmark(
    layout: Layout,
    cohort: str,
    *,
    encoders: Sequence[str],
    heads: Sequence[str] = ("gene-mean", "ridge"),
    targets: Sequence[str] = ("lognorm",),
    score: str = "all",
    standardize: str = "slide",
    shuffle_seed: int | None = None,
) -> list[tuple[str, Evaluation]]:
    """Fit every head on the train slides for every encoder and target, and score the others.

    Parameters
    ----------
    layout
        The store.
    cohort
        Cohort name.
    encoders, heads, targets
        Encoder names or array keys (several joined by ``+`` stand side by side), head names, layer names.
    score
        ``all`` entries or ``measured`` ones.
    standardize
        For heads that standardise features: ``slide`` (each slide by its own spots; uses test images, never test
        expression), ``train`` (by the training slides) or ``none``.
    shuffle_seed
        Pair features and targets of the training slides at random, as a check.

    Returns
    -------
    list of (str, Evaluation)
        Per (encoder, head, target): the array key and rows, predictions (by unit: a slide, or ``<slide>/<part>`` of a divided
        one), fitted head.

    Raises
    ------
    InputError
        Unknown names, embeddings that are missing or unfinished, no held-out slide.
    """
    from spared_fm.benchmark.runner import evaluate

    if score not in ("all", "measured"):
        raise InputError(f"--score {score!r} is not all or measured")
    layers = {layer: target(layout, cohort, layer) for layer in targets}
    mask = target(layout, cohort, "mask") if score == "measured" else None
    results = []
    for encoder in encoders:
        joined = join(layout, cohort, encoder)
        for layer in targets:
            for head in heads:
                found = evaluate(
                    make_head(head, standardize, joined.blocks),
                    encoder=encoder,
                    target=layer,
                    X=joined.features,
                    Y={slide: layers[layer][rows] for slide, rows in joined.rows.items()},
                    mask=None if mask is None else {slide: mask[rows] for slide, rows in joined.rows.items()},
                    split=joined.split,
                    patients=joined.patients,
                    coords=joined.coords,
                    which=score,  # type: ignore[arg-type]
                    shuffle_seed=shuffle_seed,
                )
                for row in found.rows:
                    if row["slide"] is not None:  # a unit: its part stands beside it
                        row["slide"] = row["slide"].split("/")[0]
                results.append((joined.key, found))
    return results


def fit(
    layout: Layout,
    cohort: str,
    *,
    encoder: str,
    target_layer: str = "lognorm",
    head: str = "ridge",
    standardize: str = "slide",
    name: str | None = None,
) -> dict[str, Any]:
    """Fit one head on the cohort's training slides and save it under ``heads/<cohort>/<run>/``.

    Parameters
    ----------
    layout
        The store.
    cohort, encoder, target_layer, head, standardize
        As for :func:`benchmark`.
    name
        Name of the run; by default made of encoder, target and head.

    Returns
    -------
    dict
        cohort, run, path, encoder key, target, head, scores (the held-out rows of :func:`benchmark`).

    Raises
    ------
    InputError
        As for :func:`benchmark`; or the run exists.
    """
    from spared_fm.heads.io import CARD, save
    from spared_fm.store.layout import check_name

    record = cohort_record(layout, cohort)
    if (label := make_head(head, standardize).label.partition(":")[0]) in ("oracle", "leakage"):
        raise InputError(f"head {head!r} is a floor for tables ({label}), not a model to save; benchmark shows it")
    [(key, found)] = benchmark(
        layout, cohort, encoders=[encoder], heads=[head], targets=[target_layer], standardize=standardize
    )
    run = check_name(name or _plain_name(f"{key}-{target_layer}-{head}"), "run")
    recipe_id = recipe_of(current_arrays(layout, next(iter(record["split"])), key.split(BESIDE)))
    card = {
        "cohort": cohort,
        "cohort_settings": record["settings_digest"],
        "encoder": key,
        "recipe_id": recipe_id,
        "target": target_layer,
        "genes": list(read_elem(layout, f"{layout.cohort(cohort)}/var").index),
        "train_slides": [slide for slide, part in record["split"].items() if "train" in part.split("+")],
        "scores": found.rows,
    }
    node = layout.head(cohort, run)
    if layout.files.exists(f"{node}/{CARD}"):
        raise InputError(f"{layout.root / node} exists already; give --name for another run, or delete it to fit again")
    with layout.files.staging_folder() as staging:
        save(found.head, staging / run, card)
        layout.files.publish(staging / run, node, last=CARD)
    return {
        "cohort": cohort,
        "run": run,
        "path": str(layout.root / node),
        "encoder": key,
        "target": target_layer,
        "head": head,
        "fit_id": digest(card)[:16],
        "scores": found.rows,
    }


def predict(
    layout: Layout, cohort: str, run: str, *, slides: str | Sequence[str] | None = None
) -> dict[str, ad.AnnData]:
    """Apply a saved head to slides, with or without measured expression.

    Parameters
    ----------
    layout
        The store.
    cohort, run
        Where the head was saved.
    slides
        Glob or ids; by default every slide that has embeddings of the head's encoder.

    Returns
    -------
    dict of AnnData
        Slide → spots × genes with the predictions in ``X`` (float32; NaN where the patch is absent), ``obs`` and
        ``obsm['spatial']`` of the slide, and the head's identity in ``uns['prediction']``.

    Raises
    ------
    InputError
        No such head, or embeddings that are missing or of another recipe.
    """
    import anndata

    from spared_fm.heads.io import CARD, load

    node = layout.head(cohort, run)
    if not layout.files.exists(f"{node}/{CARD}"):
        raise InputError(f"{layout.root / node} is not a saved head; `spared-fm fit` makes one")
    with layout.files.local_folder(node) as folder:
        head, card = load(folder)
    keys = card["encoder"].split(BESIDE)
    chosen = choose_slides(layout, slides)
    if slides is None:
        chosen = [slide for slide in chosen if set(keys) <= set(layout.embeddings(slide))]
    predictions = {}
    for slide in chosen:
        arrays = current_arrays(layout, slide, keys)
        if recipe_of(arrays) != card["recipe_id"]:
            raise InputError(
                f"slide {slide}: {card['encoder']!r} has another recipe than the head was fitted on; encode it the same way"
            )
        features = side_by_side(arrays)
        present = np.isfinite(features).all(axis=1)
        values = np.full((len(features), len(card["genes"])), np.nan, dtype=np.float32)
        node = layout.slide(slide)
        spatial = read_elem(layout, f"{node}/obsm/spatial")
        values[present] = head.predict(
            features[present], groups=np.full(int(present.sum()), slide), coords=np.asarray(spatial)[present, :2]
        )
        adata = anndata.AnnData(X=values, obs=read_elem(layout, f"{node}/obs"))
        adata.var_names = card["genes"]
        adata.obsm["spatial"] = spatial
        adata.uns["spatial"] = read_elem(layout, f"{node}/uns/spatial")
        adata.uns["prediction"] = {"cohort": cohort, "run": run, "encoder": card["encoder"], "target": card["target"]}
        predictions[slide] = adata
    return predictions


def _plain_name(text: str) -> str:
    """Make a run's name of array keys and names, whose own characters are more than a run's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def make_head(name: str, standardize: str, blocks: Sequence[Block] = ()) -> Head:
    """Make an unfitted head; ``standardize`` reaches the heads that take it, and the form of the features does.

    Parameters
    ----------
    name
        Head.
    standardize
        ``slide``, ``train`` or ``none``.
    blocks
        What the features are made of (:attr:`Joined.blocks`), where they are known.

    Raises
    ------
    InputError
        An unknown head, another word, or features that the head can't take.
    """
    from spared_fm.heads.registry import make

    if standardize not in ("slide", "train", "none"):
        raise InputError(f"--standardize {standardize!r} is not slide, train or none")
    given = {"standardize": standardize} if "standardize" in make(name).get_params() else {}
    return make_fitting(name, given, blocks) if blocks else make(name, **given)
