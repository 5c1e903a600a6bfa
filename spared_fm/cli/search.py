"""Commands that look for what is similar: index, search, transfer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spared_fm.cli.output import AsJson, Store, print_result

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer()

Encoder = Annotated[str, typer.Option("--encoder", "-e", help="Encoder name or array key.", show_default=False)]
Spot = Annotated[list[str] | None, typer.Option(help="Query spot, SLIDE/BARCODE.")]
ImageFile = Annotated[list[Path] | None, typer.Option(help="Query image file: one patch, or any image with --mpp.")]
Region = Annotated[
    list[str] | None,
    typer.Option(
        help="Query region, SLIDE:X,Y in pixels or SLIDE:X,Yum in µm; SLIDE:X,Y,500um is a square of that side."
    ),
]
Vector = Annotated[list[Path] | None, typer.Option(help="Query vectors: a .npy file, (dim,) or (n, dim).")]
Combine = Annotated[
    str | None, typer.Option(help="All query spots are one query: their mean, or what is similar to any of them.")
]
Radius = Annotated[
    float | None, typer.Option(help="All that is at least so similar (cosine, ip) or at most so far (l2).")
]
Exclude = Annotated[
    str | None, typer.Option(help="Leave out the query's own slide, its patient, or the slides in a cohort with it.")
]
Slides = Annotated[list[str] | None, typer.Option("--slide", help="Slides to search, id or glob.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="COLUMN=VALUE that results must fit: an obs column, patient, split, tissue …; VALUE may be a glob."
    ),
]
InCohort = Annotated[str | None, typer.Option("--cohort", "-c", help="Find spots of this cohort only.")]
OnePerSlide = Annotated[bool, typer.Option("--one-per-slide", help="The best result of each slide only.")]
Gene = Annotated[list[str] | None, typer.Option(help="Gene whose expression to give.")]
Layer = Annotated[
    str | None, typer.Option(help="Where --gene is read: a layer of the cohort; by default the raw counts.")
]
Weights = Annotated[str | None, typer.Option(help="Weights file of the encoder, for image queries.")]
Mpp = Annotated[float | None, typer.Option(help="Microns per pixel of the query images.")]
Metric = Annotated[str | None, typer.Option(help="cosine, ip or l2; by default the index's, else cosine.")]
Standardize = Annotated[
    bool | None,
    typer.Option(help="Scale dimensions by mean and standard deviation first; by default for built-in encoders."),
]
ExactOnly = Annotated[bool, typer.Option("--exact", help="Compare every row although there is an index.")]


@app.command(epilog="Example: `spared-fm index --store S --encoder stain-bank --target-recall 0.98`")
def index(
    store: Store,
    encoder: Encoder,
    slide: Annotated[list[str] | None, typer.Option(help="Slides to add, id or glob; by default all.")] = None,
    metric: Annotated[str | None, typer.Option(help="cosine, ip or l2; by default as it is, at first cosine.")] = None,
    standardize: Standardize = None,
    target_recall: Annotated[
        float | None, typer.Option(help="Least recall@10 against exact search; by default as it is, at first 0.95.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most memory that a build may take and the index fill, e.g. 8GB.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Local worker processes; 0 builds in this process.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running dask scheduler.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew instead of adding and removing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an index of an encoder's embeddings, or bring it up to date: new slides are added, removed ones leave it."""
    import spared_fm

    result = spared_fm.open(store).index(
        encoder,
        slides=slide,
        metric=metric,
        standardize=standardize,
        target_recall=target_recall,
        memory=memory,
        workers=workers,
        scheduler=scheduler,
        rebuild=rebuild,
        progress=True,
    )
    print_result(result, as_json)


@app.command(
    epilog="Example: `spared-fm search --store S --encoder stain-bank --spot slide1/AAAC-1 -k 5 --exclude slide`"
)
def search(
    store: Store,
    encoder: Encoder,
    spot: Spot = None,
    image: ImageFile = None,
    region: Region = None,
    vector: Vector = None,
    combine: Combine = None,
    k: Annotated[int | None, typer.Option("-k", help="Results per query: by default 10, with --radius all.")] = None,
    radius: Radius = None,
    exclude: Exclude = None,
    slide: Slides = None,
    where: Where = None,
    cohort: InCohort = None,
    one_per_slide: OnePerSlide = False,
    column: Annotated[list[str] | None, typer.Option(help="obs column, or label of the slide, to give.")] = None,
    gene: Gene = None,
    layer: Layer = None,
    montage: Annotated[Path | None, typer.Option(help="PNG file to write: queries and results as images.")] = None,
    metric: Metric = None,
    standardize: Standardize = None,
    exact: ExactOnly = False,
    weights: Weights = None,
    mpp: Mpp = None,
    as_json: AsJson = False,
) -> None:
    """Find the most similar patches."""
    import spared_fm

    rows = _rows(
        lambda: spared_fm.open(store).search(
            encoder,
            columns=column or [],
            genes=gene or [],
            layer=layer,
            montage=montage,
            one_per_slide=one_per_slide,
            **_queries(spot, image, region, vector, combine, weights, mpp),
            **_limits(k, radius, exclude, slide, where, cohort, metric, standardize, exact),
        )
    )
    print_result(rows, as_json)


@app.command(
    epilog="Example: `spared-fm transfer --store S --encoder stain-bank --region slide1:812,930um --label annotation`"
)
def transfer(
    store: Store,
    encoder: Encoder,
    label: Annotated[str | None, typer.Option(help="Column to transfer, e.g. annotation.")] = None,
    gene: Gene = None,
    layer: Layer = None,
    spot: Spot = None,
    image: ImageFile = None,
    region: Region = None,
    vector: Vector = None,
    combine: Combine = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours.")] = 15,
    weighting: Annotated[str, typer.Option(help="distance (they count by 1 ÷ distance) or uniform.")] = "distance",
    radius: Radius = None,
    exclude: Exclude = None,
    slide: Slides = None,
    where: Where = None,
    cohort: InCohort = None,
    one_per_slide: OnePerSlide = False,
    metric: Metric = None,
    standardize: Standardize = None,
    exact: ExactOnly = False,
    weights: Weights = None,
    mpp: Mpp = None,
    as_json: AsJson = False,
) -> None:
    """Give a patch or a region the label, or the expression, of the spots most similar to it, with these as evidence."""
    import spared_fm

    rows = _rows(
        lambda: spared_fm.open(store).transfer(
            encoder,
            label=label,
            genes=gene or [],
            layer=layer,
            weighting=weighting,
            one_per_slide=one_per_slide,
            **_queries(spot, image, region, vector, combine, weights, mpp),
            **_limits(k, radius, exclude, slide, where, cohort, metric, standardize, exact),
        )
    )
    print_result(rows if as_json else [row | {"evidence": _brief(row["evidence"])} for row in rows], as_json)


def _queries(
    spots: list[str] | None,
    images: list[Path] | None,
    regions: list[str] | None,
    vectors: list[Path] | None,
    combine: str | None,
    weights: str | None,
    mpp: float | None,
) -> dict[str, Any]:
    return {
        "spots": spots or [],
        "images": images or [],
        "regions": regions or [],
        "vectors": vectors or [],
        "combine": combine,
        "weights": weights,
        "mpp": mpp,
    }


def _limits(
    k: int | None,
    radius: float | None,
    exclude: str | None,
    slides: list[str] | None,
    where: list[str] | None,
    cohort: str | None,
    metric: str | None,
    standardize: bool | None,
    exact: bool,
) -> dict[str, Any]:
    return {
        "k": k,
        "radius": radius,
        "exclude": exclude,
        "slides": slides,
        "where": where,
        "cohort": cohort,
        "metric": metric,
        "standardize": standardize,
        "exact": exact,
    }


def _rows(verb: Callable[[], pd.DataFrame]) -> list[dict[str, Any]]:
    """Give a verb's table as records, and its warnings as lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = verb()
    for warning in caught:
        if warning.category is UserWarning:  # ours; libraries have kinds of their own
            typer.echo(f"warning: {warning.message}", err=True)
    rows: list[dict[str, Any]] = json.loads(found.to_json(orient="records", double_precision=15))
    return rows


def _brief(evidence: list[dict[str, Any]]) -> list[str]:
    """Spots with their weights, the heaviest three; ``--json`` has all of all."""
    shown = [f"{row['spot']} ({row['weight']:.2f})" for row in evidence[:3]]
    return [*shown, "…"] if len(evidence) > len(shown) else shown
