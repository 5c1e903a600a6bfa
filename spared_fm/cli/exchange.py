"""Commands that bring vectors in from other tools and take them out: import-features, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spared_fm.cli.output import AsJson, Store, print_result

app = typer.Typer()


@app.command("import-features", epilog="Example: `spared-fm import-features feats/S1.h5 --store S --encoder uni`")
def import_features(
    files: Annotated[
        list[Path], typer.Argument(help="TRIDENT, CLAM, STAMP or HEST-bench .h5; slide2vec .pt.", show_default=False)
    ],
    store: Store,
    encoder: Annotated[
        str, typer.Option("--encoder", "-e", help="The encoder they are said to be of.", show_default=False)
    ],
    slide: Annotated[str | None, typer.Option(help="Slide id, for one file; by default the file's stem.")] = None,
    kind: Annotated[str | None, typer.Option(help="Layout of the files; by default told from their content.")] = None,
    key: Annotated[str | None, typer.Option(help="Name of the array, NAME@LABEL.")] = None,
    coordinates: Annotated[
        Path | None, typer.Option(help="File or folder with the coordinates, where the features have none.")
    ] = None,
    tolerance_um: Annotated[
        float | None, typer.Option(help="Most µm between a spot and its patch; by default a quarter of the patch.")
    ] = None,
    pixels: Annotated[
        str,
        typer.Option(help="Whose pixels the coordinates are in: image (level 0), spots, or ignore (join by barcode)."),
    ] = "image",
    patch_level0: Annotated[float | None, typer.Option(help="Patch side in level-0 pixels, where not stated.")] = None,
    mpp: Annotated[float | None, typer.Option(help="µm per level-0 pixel, where not stated.")] = None,
    min_matched: Annotated[float, typer.Option(help="Refuse a file that matches a smaller share of the spots.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Take over vectors that another tool made, joined to spots by coordinates or barcode; marked unverified."""
    import spared_fm

    rows = spared_fm.open(store).import_features(
        files,
        encoder=encoder,
        slide=slide,
        kind=kind,
        key=key,
        coordinates=coordinates,
        tolerance_um=tolerance_um,
        pixels=pixels,
        patch_level0=patch_level0,
        mpp=mpp,
        min_matched=min_matched,
        progress=True,
    )
    print_result(rows, as_json)


@app.command(epilog="Example: `spared-fm export --store S --encoder uni --to out --form h5ad`")
def export(
    store: Store,
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="Encoder name or array key.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder to write to, a file per slide.", show_default=False)],
    form: Annotated[str, typer.Option(help="h5ad, npy (with ids as parquet), trident or spatialdata.")] = "h5ad",
    slide: Annotated[list[str] | None, typer.Option("--slide", help="Slide id or glob; by default all.")] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", "-c", help="Cohort whose targets go along.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the cohort.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write embeddings for other tools: AnnData, NumPy, TRIDENT-style HDF5, SpatialData."""
    import spared_fm

    rows = spared_fm.open(store).export(
        slide, encoder=encoder, to=to, form=form, cohort=cohort, layer=layer, overwrite=overwrite, progress=True
    )
    print_result(rows, as_json)
