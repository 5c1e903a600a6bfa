"""Commands about benchmarks: one cohort at once, or a declared matrix that is kept cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spared_fm.cli.output import AsJson, Standardize, Store, print_result

app = typer.Typer(
    name="benchmark", help="Fit heads on train slides and score the others, at once or as a declared matrix."
)


@app.callback(
    invoke_without_command=True,
    epilog="Example: `spared-fm benchmark --store S --cohort C --encoder stain-bank --head gene-mean --head ridge`",
)
def benchmark(
    context: typer.Context,
    store: Annotated[
        str | None, typer.Option("--store", "-s", help="Folder of the store, or its URL (s3://…).")
    ] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", "-c", help="Cohort name.")] = None,
    encoder: Annotated[list[str] | None, typer.Option("--encoder", "-e", help="Encoder names or array keys.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Head names; by default gene-mean and ridge.")] = None,
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help="Layers; by default lognorm.")] = None,
    score: Annotated[str, typer.Option(help="Score all entries, or measured ones.")] = "all",
    standardize: Standardize = "slide",
    shuffle: Annotated[
        int | None, typer.Option(help="Seed: pair spots and targets at random; must score about 0.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML report with pictures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit on train slides, predict the others, score per slide and pooled."""
    if context.invoked_subcommand is not None:
        return
    for option, given in (("--store", store), ("--cohort", cohort), ("--encoder", encoder)):
        if not given:
            raise typer.BadParameter("give it, or one of the commands run, show, report", param_hint=option)
    import spared_fm

    rows = spared_fm.open(str(store)).benchmark(
        str(cohort),
        encoders=encoder,
        heads=head or ["gene-mean", "ridge"],
        targets=target or ["lognorm"],
        score=score,
        standardize=standardize,
        shuffle_seed=shuffle,
        report=report,
    )
    print_result(_plain(rows), as_json)


@app.command(epilog="Example: `spared-fm benchmark run matrix.toml --store S --workers 2`")
def run(
    toml: Annotated[
        Path, typer.Argument(help="TOML: name, cohorts, encoders, heads, targets, protocol; as wanted score, seeds.")
    ],
    store: Store,
    workers: Annotated[int, typer.Option(help="Local processes; 0 computes in this one.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running dask scheduler.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the cells of a declared benchmark that are not kept yet. Run it again after a kill."""
    import spared_fm

    rows = spared_fm.open(store).run_benchmark(toml, workers=workers, scheduler=scheduler, progress=True)
    print_result(rows if as_json else [row for row in rows if _whole(row)], as_json)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


@app.command(epilog="Example: `spared-fm benchmark show NAME --store S --parquet`")
def show(
    name: Annotated[str, typer.Argument(help="The benchmark's name.")],
    store: Store,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write table.parquet beside its cells.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a declared benchmark, finished or not."""
    import spared_fm

    study = spared_fm.open(store)
    rows = _plain(study.show_benchmark(name))
    print_result(rows if as_json else [row for row in rows if _whole(row)], as_json)
    if parquet:
        typer.echo(study.benchmark_table(name), err=True)


@app.command(epilog="Example: `spared-fm benchmark report NAME --store S --out report.html`")
def report(
    name: Annotated[str, typer.Argument(help="The benchmark's name.")],
    store: Store,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    anonymise: Annotated[
        bool,
        typer.Option(
            "--anonymise", help="Neutral names for slides and patients; reasons, which may name files, left out."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a declared benchmark's report: tables with intervals, answers, plots, published figures beside ours."""
    import spared_fm

    found = spared_fm.open(store).report_benchmark(name, out, anonymise=anonymise, progress=True)
    if as_json:
        print_result(found, as_json)
        return
    for answer in found["answers"]:
        typer.echo(answer["said"])
    typer.echo(found["report"], err=True)


def _plain(table: Any) -> Any:
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _whole(row: dict[str, Any]) -> bool:
    """Whether a row is about all that was held out: of several folds their mean, not each."""
    return row["over"] in (None, "fold_mean") or (row["over"] == "pooled" and row["fold"] is None)
