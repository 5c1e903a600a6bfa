"""What the spots of a slide are coloured by: obs columns, genes in a layer, directions and clusters of embeddings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.store.nodes import read_elem, read_index
from spared_fm.study.cohort import gene_names
from spared_fm.study.search_columns import Tables, expression
from spared_fm.study.view import UNITS, is_number, unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from scipy import sparse

    from spared_fm.store.layout import Layout
    from spared_fm.study.view import Catalogue

SAMPLE_ROWS = 20_000
"""Rows that clusters and directions are fitted on, of all slides together."""
_CLUSTER_DIRECTIONS = 32  # principal directions that clusters are made in
_TAIL = 1.0  # per cent at each end that the colours of directions saturate at
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Colours:
    """Values of a slide's spots to draw.

    Attributes
    ----------
    kind
        ``number``: float64 (n,), NaN where unknown. ``category``: int32 (n,) into `categories`, -1 where unknown. ``rgb``:
        float64 (n, 3) from 0 to 255, NaN where unknown.
    values
        As `kind` says, one per spot in the slide's order.
    label, unit
        What a legend says.
    categories
        Names.
    diverging
        Whether zero is the middle of the scale.
    """

    kind: str
    values: np.ndarray
    label: str
    unit: str | None = None
    categories: tuple[str, ...] | None = None
    diverging: bool = False

    @property
    def nbytes(self) -> int:
        """Memory that they take, for caches."""
        return self.values.nbytes + 64 * len(self.categories or ())


def obs_colours(obs: pd.DataFrame, name: str) -> Colours:
    """Colour by a column of ``obs``.

    Raises
    ------
    InputError
        No such column.
    """
    if name not in obs:
        raise InputError(f"no obs column {name!r} (columns: {', '.join(map(str, obs.columns)) or 'none'})")
    column = obs[name]
    if is_number(column):
        values = column.to_numpy(np.float64, na_value=np.nan)
        return Colours("number", np.where(np.isfinite(values), values, np.nan), name)
    codes, names = _codes(column)
    return Colours("category", codes, name, None, names)


def _codes(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    there = column.notna().to_numpy()
    texts = column.astype(str).to_numpy(object)
    names = sorted({text for text, known in zip(texts.tolist(), there.tolist(), strict=True) if known and text != ""})
    at = {name: i for i, name in enumerate(names)}
    codes = [at.get(text, -1) if known else -1 for text, known in zip(texts.tolist(), there.tolist(), strict=True)]
    return np.array(codes, np.int32), tuple(names)


def counts_columns(layout: Layout, slide: str) -> sparse.csc_matrix:
    """Raw counts of a slide with its columns at hand."""
    from scipy import sparse

    return sparse.csc_matrix(read_elem(layout, f"{layout.slide(slide)}/X"))


def layer_genes(layout: Layout, slide: str, layer: str) -> dict[str, str]:
    """Genes of a layer, as :func:`spared_fm.study.view.layers` names it: as people name them → as they are stored."""
    if layer == "counts":
        names = [str(name) for name in read_index(layout, f"{layout.slide(slide)}/var")]
        return dict(zip(names, names, strict=True))
    kind, _, rest = layer.partition(":")
    cohort, _, run = rest.partition("/")
    found = gene_names(layout, cohort)
    if kind != "head":
        return found
    import json

    from spared_fm.heads.io import CARD

    shown = {stored: name for name, stored in found.items()}
    fitted = json.loads(layout.files.read(f"{layout.head(cohort, run)}/{CARD}"))["genes"]
    return {shown.get(gene, gene): gene for gene in fitted}


def predicted(layout: Layout, slide: str, layer: str) -> tuple[np.ndarray, list[str]]:
    """Predict a slide with a saved head, ``head:<cohort>/<run>``: values (spots, genes) and the genes."""
    from spared_fm.study.evaluate import predict

    cohort, _, run = layer.removeprefix("head:").partition("/")
    found = predict(layout, cohort, run, slides=[slide])[slide]
    return np.asarray(found.X), [str(name) for name in found.var_names]


def cohort_values(tables: Tables, slide: str, gene: str, layer: str) -> np.ndarray:
    """Values of a gene in ``cohort:<cohort>/<layer>`` at a slide's spots, float64 (n,); NaN at spots the cohort lacks."""
    cohort, _, name = layer.removeprefix("cohort:").partition("/")
    spots = [(slide, row) for row in range(len(tables.obs(slide)))]
    return expression(tables, spots, [gene], name, cohort)[:, 0]


def gene_colours(
    values: np.ndarray, gene: str, layer: Mapping[str, Any], minus: Mapping[str, Any] | None, other: np.ndarray | None
) -> Colours:
    """Colour by a gene in a layer, or by the difference of two layers.

    Parameters
    ----------
    values, other
        The gene in `layer` and in `minus`.
    gene
        Its name.
    layer, minus
        As :func:`spared_fm.study.view.layers` lists them.

    Raises
    ------
    InputError
        The layers have different units.
    """
    if minus is None or other is None:
        return Colours("number", values, f"{gene}, {layer['label']}", layer["unit"])
    if layer["unit"] != minus["unit"] and None not in (layer["unit"], minus["unit"]):
        raise InputError(
            f"{layer['label']} is in {layer['unit']} and {minus['label']} in {minus['unit']}; subtract a layer of the same unit"
        )
    label = f"{gene}, {layer['label']} − {minus['label']}"
    return Colours("number", values - other, label, layer["unit"] or minus["unit"], diverging=True)


def head_unit(layout: Layout, layer: str) -> str | None:
    """Tell the unit of what a head predicts: that of the layer it was fitted to."""
    import json

    from spared_fm.heads.io import CARD

    cohort, _, run = layer.removeprefix("head:").partition("/")
    try:
        card = json.loads(layout.files.read(f"{layout.head(cohort, run)}/{CARD}"))
    except (OSError, ValueError):
        return None
    return unit(str(card.get("target", ""))) or UNITS.get(str(card.get("target")))


@dataclasses.dataclass(frozen=True)
class Directions:
    """Principal directions of one key's embeddings, fitted on a sample of all its slides.

    Attributes
    ----------
    mean
        float32 (dim,).
    axes
        float32 (dim, m), the first the one of most variance.
    low, high
        float64 (3,): where the colours of the first three begin and end.
    sample
        float32 (rows, m): the sample along them.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray


def fit_directions(layout: Layout, held: Catalogue, key: str) -> Directions:
    """Fit principal directions on at most :data:`SAMPLE_ROWS` rows, spread evenly over the slides; the signs are fixed.

    Raises
    ------
    InputError
        No slide has finished embeddings of that key.
    """
    parts, own = [], [slide for slide, arrays in held.embeddings.items() if key in arrays]
    for slide in own:
        array = EmbeddingArray(layout, slide, key)
        rows = np.unique(np.linspace(0, array.shape[0] - 1, max(1, SAMPLE_ROWS // len(own))).astype(np.int64))
        try:
            parts.append(array.read(rows[rows < array.shape[0]]).astype(np.float32))
        except IncompleteError:
            continue
    sample = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
    sample = sample[np.isfinite(sample).all(axis=1)]
    if len(sample) < 2:
        raise InputError(f"embeddings {key!r} have too few finished rows; encode first")
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :_CLUSTER_DIRECTIONS]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    along = centred @ axes
    low, high = np.percentile(along[:, :3].astype(np.float64), [_TAIL, 100 - _TAIL], axis=0)
    return Directions(mean, axes, low, high, along)


def fit_clusters(directions: Directions, k: int) -> np.ndarray:
    """Fit k-means along the directions: centres float32 (k, m), the most frequent cluster first."""
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(min(k, len(directions.sample)), random_state=_SEED, n_init=3).fit(directions.sample)
    sizes = np.bincount(fitted.labels_, minlength=len(fitted.cluster_centers_))
    return fitted.cluster_centers_[np.argsort(-sizes, kind="stable")]


def pca_colours(layout: Layout, slide: str, key: str, directions: Directions) -> Colours:
    """Colour by the first three principal directions, as red, green and blue; the same on every slide."""
    along = _along(layout, slide, key, directions)[:, :3]
    if along.shape[1] < 3:
        along = np.pad(along, ((0, 0), (0, 3 - along.shape[1])))
    low, high = (np.pad(side, (0, 3 - len(side))) for side in (directions.low, directions.high))
    span = np.where(high > low, high - low, 1.0)
    return Colours("rgb", np.clip((along - low) / span, 0, 1) * 255, f"{key}: principal directions 1, 2, 3 as RGB")


def cluster_colours(layout: Layout, slide: str, key: str, directions: Directions, centres: np.ndarray) -> Colours:
    """Colour by the nearest centre; the same on every slide."""
    along = _along(layout, slide, key, directions)
    distance = (centres**2).sum(axis=1) - 2 * along @ centres.T
    codes = np.where(np.isfinite(along).all(axis=1), np.nan_to_num(distance).argmin(axis=1), -1)
    names = tuple(f"cluster {i + 1}" for i in range(len(centres)))
    return Colours("category", codes.astype(np.int32), f"{key}: {len(centres)} clusters (k-means)", None, names)


def _along(layout: Layout, slide: str, key: str, directions: Directions) -> np.ndarray:
    array = EmbeddingArray(layout, slide, key)
    array.check_current()
    return (array.read().astype(np.float32) - directions.mean) @ directions.axes
