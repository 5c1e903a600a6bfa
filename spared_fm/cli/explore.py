"""The command that shows a store in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from spared_fm.cli.output import Store

app = typer.Typer()


@app.command(epilog="Example: `spared-fm explore --store S`")
def explore(
    store: Store,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8765,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Look at a store in the browser: slides, expression, similar patches. Read-only, on this machine only."""
    from spared_fm.explore.server import serve

    serve(store, port=port, browser=browser)
