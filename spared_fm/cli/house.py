"""Commands that look after a store: info, verify, rm, gc, merge, relink, migrate, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spared_fm.cli.output import AsJson, Store, print_result
from spared_fm.errors import InputError

app = typer.Typer()

Slides = Annotated[list[str] | None, typer.Option("--slide", help="Slide id or glob; by default all.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")]


@app.command(epilog="Example: `spared-fm info --store S`")
def info(store: Store, as_json: AsJson = False) -> None:
    """Say what the store holds."""
    import spared_fm

    found = spared_fm.open(store).info()
    if as_json:
        print_result(found, as_json)
        return
    rows = [
        {**row, "embeddings": ", ".join(f"{k} {v['finished']}/{v['chunks']}" for k, v in row["embeddings"].items())}
        for row in found["slides"]
    ]
    print_result(rows, False)
    print_result([{**row, "split": None} for row in found["cohorts"]], False)
    if found["indexes"]:
        print_result(found["indexes"], False)
    print_result([_run_row(run) for run in found["runs"]], False)


def _run_row(run: dict[str, Any]) -> dict[str, Any]:
    """One run as a table row: each stage's share of the work, and the stage that was the limit."""
    stages = run.get("stages") or {}
    whole = sum(stages.values()) or 1.0
    return {
        "run": f"{run['verb']} {run['time']}",
        "keys": run.get("keys"),
        "patches": run.get("patches"),
        "seconds": run.get("seconds"),
        "device": run.get("device"),
        "limit": run.get("limit"),
        "shares": ", ".join(f"{name} {value / whole:.0%}" for name, value in stages.items() if value / whole >= 0.005),
    }


@app.command(epilog="Example: `spared-fm verify --store S --repair`")
def verify(
    store: Store,
    slide: Slides = None,
    encoder: Annotated[str | None, typer.Option("--encoder", "-e", help="Encoder name or array key.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Compute damaged chunks again, and only these.")] = False,
    weights: Annotated[str | None, typer.Option(help="Weights of the encoder, where they came from a file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check every chunk against its checksum, cohorts against their slides; exit code 1 when damage remains."""
    import spared_fm

    rows = spared_fm.open(store).verify(
        slides=slide, encoder=encoder, repair=repair, weights=weights, device=device, progress=True
    )
    print_result(rows, as_json)
    left = [row for row in rows if not row.get("repaired") and row["kind"] != "absent"]
    if left:
        mend = "" if repair else "; `--repair` computes damaged chunks again"
        raise InputError(f"{store}: {len(left)} problems found, the first: {left[0]['problem']}{mend}")
    if not as_json:
        mended = any(row.get("repaired") for row in rows)
        typer.echo("everything damaged was mended" if mended else "every stored chunk matches its receipt")


@app.command(epilog="Example: `spared-fm rm --store S --slide old1 --dry-run`")
def rm(
    store: Store,
    slide: Annotated[list[str] | None, typer.Option("--slide", help="Slide id or glob.")] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", "-e", help="Encoder name or array key.")] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", "-c", help="Cohort name.")] = None,
    head: Annotated[str | None, typer.Option(help="Name of a fitted run of the cohort.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Name of a declared benchmark.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what something else depends on.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove slides, embeddings, a cohort, a fitted head or a benchmark."""
    import spared_fm

    rows = spared_fm.open(store).rm(
        slides=slide, encoder=encoder, cohort=cohort, head=head, benchmark=benchmark, force=force, dry_run=dry_run
    )
    print_result(rows, as_json)


@app.command(epilog="Example: `spared-fm gc --store S --dry-run`")
def gc(
    store: Store,
    older_than: Annotated[float, typer.Option(help="Hours that leftovers must have lain still.")] = 24.0,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Also chunks without a receipt; not while others write.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete what killed writers left behind, expired claims and old run records."""
    import spared_fm

    print_result(spared_fm.open(store).gc(older_than=older_than, orphans=orphans, dry_run=dry_run), as_json)


@app.command(epilog="Example: `spared-fm merge --store S other-store`")
def merge(
    store: Store,
    other: Annotated[str, typer.Argument(help="The store to copy from; it is only read.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Copy what another store has and this one lacks, chunk by chunk, each checked."""
    import spared_fm

    print_result(spared_fm.open(store, create=True).merge(other, progress=True), as_json)


@app.command(epilog="Example: `spared-fm relink --store S /new/place/of/images`")
def relink(
    store: Store,
    folder: Annotated[Path, typer.Argument(help="Folder to search for moved images.", show_default=False)],
    slide: Slides = None,
    as_json: AsJson = False,
) -> None:
    """Find moved images by their fingerprint and point their slides at them."""
    import spared_fm

    print_result(spared_fm.open(store).relink(folder, slides=slide, progress=True), as_json)


@app.command(epilog="Example: `spared-fm migrate --store S`")
def migrate(store: Store, as_json: AsJson = False) -> None:
    """Bring an older store to the format of this version."""
    from spared_fm.study.migrate import migrate as run

    print_result(run(store, progress=True), as_json)


@app.command(epilog="Example: `spared-fm doctor --encoder stain-bank`")
def doctor(
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="Encoder to measure.")] = "stain-bank",
    store: Annotated[str | None, typer.Option("--store", "-s", help="Measure the disk where this store lies.")] = None,
    weights: Annotated[str | None, typer.Option(help="random, pretrained, or a file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    offline: Annotated[
        bool, typer.Option("--offline", help="Instead prove that no network socket is opened, at import and at run.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave the self-test out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether this machine is fit: versions, devices, disk, encoders, how far vectors move, a one-minute self-test."""
    if offline:
        from spared_fm.study.offline import offline as prove

        rows = prove(encoder, weights=weights)
        print_result(rows, as_json)
        if not rows[-1]["ok"]:
            raise InputError(f"{rows[-1]['step']}: {rows[-1]['text']}")
        return
    from spared_fm.store.layout import Layout
    from spared_fm.study.doctor import doctor as run

    found = run(
        encoder, store=Layout.open(store) if store else None, weights=weights, device=device, self_test=not quick
    )
    if as_json:
        print_result(found, as_json)
    else:
        print_result(found["machine"] | {"warnings": found["warnings"]}, False)
        if found["disk"]:
            print_result(found["disk"], False)
        typer.echo(f"encoders that run here without a network: {', '.join(found['encoders_ready'])}")
        print_result(found["moves"], False)
        print_result(found["self_test"], False)
    if found["problems"]:
        others = f" (and {len(found['problems']) - 1} more: --json)" if len(found["problems"]) > 1 else ""
        raise InputError(f"{found['problems'][0]}{others}")
    if not as_json:
        typer.echo("this machine is fit")
