"""Commands of the main job: demo, ingest, encode, cohort, complete, fit, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spared_fm.cli.output import AsJson, Cohort, Standardize, Store, print_result
from spared_fm.errors import InputError

app = typer.Typer()


@app.command(epilog="Example: `spared-fm demo --store my-demo`")
def demo(
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder to make.")] = Path("demo-store"),
    seed: Annotated[int, typer.Option(help="Seed of the synthetic study.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run every step on a synthetic study and write a report (under three minutes on two cores)."""
    from spared_fm.study.demo import demo as run

    print_result(run(store, seed=seed, progress=True), as_json)


@app.command(epilog="Example: `spared-fm ingest sample1/outs --store S --patient P1 --split train`")
def ingest(
    store: Store,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="counts.h5ad + image.* folder, Space Ranger outs/, .h5ad, or a plain whole-slide image."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV with the column path and, as wanted, slide, patient, split, mpp, image.")
    ] = None,
    slide: Annotated[str | None, typer.Option(help="Slide id; by default from the path.")] = None,
    patient: Annotated[str | None, typer.Option(help="Patient id.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per full-resolution pixel, where the image doesn't say.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Full-resolution image, or HEST's .h5 of patches.")] = None,
    spacing_um: Annotated[float | None, typer.Option(help="Plain images: distance of grid points, µm.")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Plain images: least share of tissue in a patch.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add slides: image, spots and raw counts."""
    import spared_fm

    if (not paths) == (table is None):
        raise typer.BadParameter("give slides to ingest, or --table")
    if paths and len(paths) > 1 and (slide or image):
        raise InputError("--slide and --image go with one path")
    study = spared_fm.open(store, create=True)
    if table is not None:
        rows = study.ingest_table(table, progress=True)
        print_result(rows, as_json)
        failed = [row for row in rows if row["error"]]
        if failed:
            raise InputError(f"{table}: {len(failed)} of {len(rows)} slides failed, the first: {failed[0]['error']}")
        return
    grid = {"spacing_um": spacing_um} | ({} if min_tissue is None else {"min_tissue": min_tissue})
    rows = []
    for path in paths or []:
        rows += study.ingest(
            path, slide=slide, patient=patient, split=split, mpp=mpp, image=image, progress=True, **grid
        )
    print_result(rows, as_json)


@app.command(epilog="Example: `spared-fm encode --store S --encoder stain-bank --encoder timm:vit_small_patch16_224`")
def encode(
    store: Store,
    encoder: Annotated[
        list[str],
        typer.Option(
            "--encoder", "-e", help="As `spared-fm encoders` lists them, or timm:<model>.", show_default=False
        ),
    ],
    slide: Annotated[list[str] | None, typer.Option(help="Slide id or glob; by default all with an image.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="random, pretrained, or a file (.safetensors or a plain state dict).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    key: Annotated[list[str] | None, typer.Option(help="Name of the array in obsm; one per encoder.")] = None,
    registry: Annotated[Path | None, typer.Option(help="TOML file with encoders of your own.")] = None,
    patch_um: Annotated[float | None, typer.Option(help="Patch side, µm; by default the encoder's own.")] = None,
    patch_px: Annotated[
        int | None, typer.Option(help="Patch side after resampling, pixels; by default the encoder's own.")
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            help="identity, dihedral-mean (the eight turned and mirrored views averaged) or dihedral (all eight)."
        ),
    ] = "identity",
    tokens: Annotated[int, typer.Option(help="Also store patch tokens, averaged to this many per side; e.g. 7.")] = 0,
    precision: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16 instead of the encoder's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Local worker processes; 0 encodes in this process.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running dask scheduler.")] = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option(help="Rows per chunk of new arrays, what a kill may cost; by default 1024, 8192 in a cloud."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Patches per forward pass; fixed in new arrays.")] = 32,
    threads: Annotated[int, typer.Option(help="Threads in one forward pass; fixed in new arrays.")] = 1,
    store_dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    max_upsample: Annotated[float | None, typer.Option(help="Refuse slides whose patches are enlarged more.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much work it is, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Encode every patch once. Run it again after a kill: finished chunks stay."""
    import spared_fm

    study = spared_fm.open(store)
    options: dict[str, Any] = {
        "slides": slide,
        "weights": weights,
        "seed": seed,
        "key": key,
        "registry": registry,
        "patch_um": patch_um,
        "patch_px": patch_px,
        "views": views,
        "tokens": tokens,
        "precision": precision,
        "device": device,
        "workers": workers,
        "chunk_rows": chunk_rows,
        "batch_size": batch_size,
        "threads": threads,
        "store_dtype": store_dtype,
    }
    if dry_run:
        rows = study.forecast(encoder, **options)
    else:
        rows = study.encode(encoder, scheduler=scheduler, max_upsample=max_upsample, progress=True, **options)
    print_result(rows, as_json)
    failed = rows[0].get("failed")
    if failed:
        raise InputError(f"{len(failed)} slides could not be encoded, the first: {next(iter(failed.values()))}")


@app.command(epilog="Example: `spared-fm cohort --store S --name C --mode strict --genes 32 --split-by patient`")
def cohort(
    store: Store,
    name: Annotated[str, typer.Option("--name", "-n", help="Cohort name.", show_default=False)],
    slides: Annotated[list[str] | None, typer.Option(help="Slide id or glob; by default all that have counts.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="CSV with the columns slide, split; by default as told to ingest.")
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="Split at random by patient, slide (= section) or block (each slide, with a buffer)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of --split-by.")] = 0,
    genes: Annotated[int | None, typer.Option(help="Genes in the panel; by default 128.")] = None,
    panel: Annotated[
        str | None,
        typer.Option(
            help="moran, variance, hvg, or a file of gene names; by default moran where gene lengths are known, else variance."
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="strict: all is fitted on training spots. spared: as published, test spots included.")
    ] = "strict",
    params: Annotated[
        Path | None, typer.Option(help="JSON file with SpaRED's parameters, under SpaRED's names.")
    ] = None,
    organism: Annotated[str | None, typer.Option(help="human or mouse; by default told from the gene names.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make targets: one gene panel, one split over slides or blocks, and SpaRED's layers where gene lengths are known."""
    import spared_fm

    result = spared_fm.open(store).cohort(
        name,
        slides=slides,
        split=split,
        split_by=split_by,
        seed=seed,
        n_genes=genes,
        panel=panel,
        mode=mode,
        params=params,
        organism=organism,
        progress=True,
    )
    print_result(result if as_json else {key: value for key, value in result.items() if key != "leakage"}, as_json)


@app.command(epilog="Example: `spared-fm complete --store S --cohort C --method rate-attention --evaluate --json`")
def complete(
    store: Store,
    cohort: Cohort,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="adaptive-median, neighbor-mean, gene-mean, low-rank-gaussian, spackle, spackle-released or rate-attention; "
            "may be given several times. By default adaptive-median; with --evaluate all of them.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Layer to complete; by default log1p where the cohort has it, else lognorm.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Name of the new layer, with one method.")] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Hide entries, score every method on the same ones, and keep the scores."),
    ] = False,
    share: Annotated[
        list[str] | None,
        typer.Option(help="With --evaluate: share to hide (0.3), spared or prob-median; by default 0.1 to 0.7."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="With --evaluate: repeats with other hidden entries.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the fits and of what is hidden.")] = 0,
    report: Annotated[Path | None, typer.Option(help="With --evaluate: HTML file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fill the entries that dropout lost, as new layers of the cohort; --evaluate says how well."""
    import spared_fm

    if layer is not None and (method is None or len(method) != 1):
        raise InputError("--layer goes with one --method")
    if report is not None and not evaluate:
        raise InputError("--report goes with --evaluate")
    study = spared_fm.open(store)
    scores: dict[str, Any] = {"rows": [], "summary": []}
    methods = method or ["adaptive-median"]
    if evaluate:
        scores = study.evaluate_completion(
            cohort, methods=method, source=source, rules=_rules(share), repeats=repeats, seed=seed, report=report
        )
        methods = method or list(scores["methods"])
    layers = [
        study.complete(cohort, method=name, source=source, layer=layer, seed=seed, scores=scores["summary"])
        for name in methods
    ]
    if evaluate:
        shown = [{key: row.get(key) for key in _COMPLETION_COLUMNS} for row in scores["summary"]]
        print_result(scores["rows"] if as_json else shown, as_json)
    else:
        print_result(layers if len(layers) > 1 else layers[0], as_json)


_COMPLETION_COLUMNS = (
    "method",
    "split",
    "share_hidden",
    "entries",
    "mse",
    "mae",
    "pcc",
    "raw_mse",
    "zeros_mse",
    "coverage",
)
"""What people are shown of a summary; the report and --json have the rest."""


def _rules(shares: list[str] | None) -> list[str | float] | None:
    """Shares as numbers; names of rules as they are."""
    return [float(text) if text.replace(".", "", 1).isdigit() else text for text in shares] if shares else None


@app.command(epilog="Example: `spared-fm fit --store S --cohort C --encoder stain-bank --target lognorm --head ridge`")
def fit(
    store: Store,
    cohort: Cohort,
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="Encoder name or array key.", show_default=False)],
    target: Annotated[str, typer.Option("--target", "-t", help="Layer to predict.")] = "lognorm",
    head: Annotated[str, typer.Option(help="Head name.")] = "ridge",
    standardize: Standardize = "slide",
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit one head on the training slides and save it with its card."""
    import spared_fm

    result = spared_fm.open(store).fit(
        cohort, encoder=encoder, target_layer=target, head=head, standardize=standardize, name=name
    )
    print_result(result, as_json)


@app.command(epilog="Example: `spared-fm predict --store S --cohort C --run RUN --slide new1 --out predictions/`")
def predict(
    store: Store,
    cohort: Cohort,
    run: Annotated[str, typer.Option(help="Run name printed by fit.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for one .h5ad per slide.", show_default=False)],
    slide: Annotated[list[str] | None, typer.Option(help="Slide id or glob; by default all that are encoded.")] = None,
    as_json: AsJson = False,
) -> None:
    """Apply a saved head to slides, measured or not; scanpy opens the result."""
    import spared_fm

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, adata in spared_fm.open(store).predict(cohort, run, slides=slide).items():
        adata.write_h5ad(out / f"{name}.h5ad")
        rows.append({"slide": name, "spots": adata.n_obs, "genes": adata.n_vars, "path": str(out / f"{name}.h5ad")})
    print_result(rows, as_json)
