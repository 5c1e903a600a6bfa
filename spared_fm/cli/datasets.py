"""Commands about SpaRED's data sets: the registry as a table, and a file against the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spared_fm.cli.output import AsJson, print_result
from spared_fm.errors import InputError

app = typer.Typer(
    name="datasets", help="List the data sets of SpaRED, or check a file of one against the published table."
)
SHOWN = ("name", "abbreviation", "organism", "tissue", "slides", "scored_on", "patients", "spots", "genes", "missing")


@app.callback(invoke_without_command=True, epilog="Example: `spared-fm datasets --name '*mouse*'`")
def datasets(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Glob of names or abbreviations.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the data sets: organism, slides, the split that is scored, known answers."""
    if context.invoked_subcommand is not None:
        return
    from spared_fm.study.datasets import datasets as run

    rows = run(name)
    print_result(rows if as_json else [{field: row[field] for field in SHOWN} for row in rows], as_json)


@app.command(epilog="Example: `spared-fm datasets check vicari_mouse_brain adata.h5ad`")
def check(
    name: Annotated[str, typer.Argument(help="Data set, by name or abbreviation.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="SpaRED's adata.h5ad or adata_raw.h5ad.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare a file with the published table; exit code 1 where they differ."""
    from spared_fm.study.datasets import check as run

    rows = run(file, name)
    print_result(rows if as_json else [{**row, "ok": "yes" if row["ok"] else "no"} for row in rows], as_json)
    if wrong := [row["field"] for row in rows if not row["ok"]]:
        raise InputError(
            f"{file}: differs from the published table in {', '.join(wrong)}; `spared-fm datasets --json` has its notes"
        )
