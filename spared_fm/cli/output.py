"""What the commands share: common options, and how results are printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Store = Annotated[
    str, typer.Option("--store", "-s", help="Folder of the store, or its URL (s3://…).", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Cohort = Annotated[str, typer.Option("--cohort", "-c", help="Cohort name.", show_default=False)]
Standardize = Annotated[str, typer.Option(help="Feature standardisation: slide, train or none.")]


def print_result(result: Any, as_json: bool) -> None:
    """Print rows as JSON, or as a table for people; warnings go to standard error."""
    rows = result if isinstance(result, list) else [result]
    for row in rows:
        for warning in row.get("warnings") or []:
            typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table

    names = [
        name
        for name in rows[0]
        if name not in ("warnings", "stages", "scores", "failed") and any(row.get(name) is not None for row in rows)
    ]
    table = Table(*names)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    console = Console()
    # A pipe has no width to fit: ids must not be cut short there.
    (console if console.is_terminal else Console(width=240)).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return "" if value is None else str(value)
