"""The command line: parse, call, print. No logic lives here.

Exit codes: 0 done, 1 failed (one line on standard error), 2 bad usage.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from spared_fm import __version__
from spared_fm.cli import benchmark, datasets, encoders, exchange, explore, house, search, work
from spared_fm.errors import InputError

app = typer.Typer(
    name="spared-fm",
    help="Encode histology patches once, keep them beside the expression of the same spots, then fit, benchmark and search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Add `--debug` anywhere to see a traceback. Try `spared-fm demo` first.",
)

for part in (work.app, search.app, explore.app, exchange.app, house.app):
    app.registered_commands += part.registered_commands
for group in (benchmark.app, encoders.app, datasets.app):
    app.add_typer(group)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"spared-fm {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the console script."""
    debug = "--debug" in sys.argv or bool(os.environ.get("SPARED_FM_DEBUG"))
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except Exception as error:  # the command line's edge: everything becomes one line and exit code 1
        if debug:
            raise
        typer.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("error: interrupted; finished chunks are kept, run the same command again to go on", err=True)
        sys.exit(130)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the store'}: {error.strerror}; free space or check permissions, then run the command again"
    return f"internal error, {type(error).__name__}: {text} (run again with --debug and report it)"
