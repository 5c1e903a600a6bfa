"""Commands that bring data in and take it out: fetch, import-spared, export-spared, import-features, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spared_fm.cli.output import AsJson, Cohort, Store, print_result

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


@app.command(epilog="Example: `spared-fm fetch 10xgenomic_human_brain --to downloads --store S`")
def fetch(
    name: Annotated[str, typer.Argument(help="Data set of SpaRED's, by name or abbreviation.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder for the downloads.", show_default=False)],
    store: Annotated[str | None, typer.Option("--store", "-s", help="Also ingest the slides into this store.")] = None,
    image: Annotated[bool, typer.Option("--image/--no-image", help="With the full-resolution images.")] = True,
    urls: Annotated[Path | None, typer.Option(help="TOML file with addresses of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download public Visium samples, resuming what was cut off; later downloads must have the same content."""
    from spared_fm.store.layout import Layout
    from spared_fm.study.fetch import fetch as run

    layout = Layout.create(store) if store else None
    print_result(run(name, to, layout=layout, image=image, urls=urls, progress=True), as_json)


@app.command("import-spared", epilog="Example: `spared-fm import-spared adata.h5ad --store S --name VMB`")
def import_spared(
    file: Annotated[Path, typer.Argument(help="SpaRED's adata.h5ad or adata_raw.h5ad.", show_default=False)],
    store: Store,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the cohort.", show_default=False)],
    mpp: Annotated[float | None, typer.Option(help="µm per pixel of the coordinates, where not known.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a file of SpaRED's, unchanged in value: its slides, and all of it as a cohort."""
    import spared_fm

    print_result(spared_fm.open(store, create=True).import_spared(file, name, mpp=mpp, progress=True), as_json)


@app.command("export-spared", epilog="Example: `spared-fm export-spared --store S --cohort VMB --to adata.h5ad`")
def export_spared(
    store: Store,
    cohort: Cohort,
    to: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    patches: Annotated[bool, typer.Option("--patches/--no-patches", help="With the patches.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an imported cohort as a file of SpaRED's again."""
    import spared_fm

    found = spared_fm.open(store).export_spared(cohort, to, patches=patches, overwrite=overwrite, progress=True)
    print_result(found, as_json)
