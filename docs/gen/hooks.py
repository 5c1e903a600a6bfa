"""MkDocs hook: a page for each verb of the command line, written from the typer app itself."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer
from mkdocs.structure.files import File

from spared_fm.cli import app
from spared_fm.heads.registry import HEADS, make

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

FOLDER = "cli/"
HEADS_HERE = "<!-- heads -->"
KINDS = {str: "text", Path: "path", int: "whole number", float: "number"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages in the place of the entry ``cli/`` of the navigation."""
    _fill(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the table of heads where a page asks for it."""
    return markdown.replace(HEADS_HERE, heads()) if HEADS_HERE in markdown else markdown


def heads() -> str:
    """Give the registry of heads as a Markdown table."""
    rows = []
    for name in HEADS:
        head = make(name)
        what = (inspect.getdoc(type(head)) or "").splitlines()[0]
        label = "; ".join(filter(None, (head.label, head.cached)))
        rows.append(f"| `{name}` | {_cell(what)} | {_cell(label)} |")
    return "\n".join(["| head | what it is | what a reader of its score must know |", "| --- | --- | --- |", *rows])


def pages() -> dict[str, str]:
    """Give path → Markdown of the overview and of each verb."""
    command: Any = typer.main.get_command(app)
    verbs = dict(sorted(command.commands.items()))
    rows = [f"| [`{name}`]({name}.md) | {_first_line(verb)} |" for name, verb in verbs.items()]
    words = inspect.cleandoc("""
        These pages are written from the program itself. `spared-fm VERB --help` says the same.

        Exit codes: 0 done, 1 failed (one line on standard error that names the thing and the mend), 2 bad usage. `--debug`
        anywhere shows a traceback. `--json` prints results for scripts.
        """)
    overview = "\n".join(["# Command line", "", words, "", "| verb | what it does |", "| --- | --- |", *rows, ""])
    return {f"{FOLDER}index.md": overview} | {f"{FOLDER}{name}.md": page(name, verb) for name, verb in verbs.items()}


def page(name: str, verb: Any) -> str:
    """Give the page of a verb, with its subcommands below it."""
    return "\n".join([f"# {name}", "", *_section(f"spared-fm {name}", verb, 2)])


def _section(usage: str, verb: Any, level: int) -> Iterator[str]:
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    options = [p for p in verb.params if p.param_type_name == "option"]
    commands = getattr(verb, "commands", {})
    line = " ".join([usage, *(_metavar(a) for a in arguments), *(["[OPTIONS]"] if options else [])])
    yield from (inspect.cleandoc(verb.help or ""), "", "```text", line, "```", "")
    if arguments:
        yield from ("| argument | |", "| --- | --- |")
        yield from (f"| `{_metavar(argument)}` | {_cell(argument.help)} |" for argument in arguments)
        yield ""
    if options:
        yield from ("| option | value | default | |", "| --- | --- | --- | --- |")
        yield from map(_option, options)
        yield ""
    if verb.epilog:
        yield from (verb.epilog, "")
    for name, command in commands.items():
        yield from (f"{'#' * level} {name}", "")
        yield from _section(f"{usage} {name}", command, level + 1)


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f"{_kind(option)}{', repeatable' if option.multiple else ''}"
    given = option.default
    if option.required:
        default = "**required**"
    elif option.is_flag or given is None or given == () or callable(given):
        default = ""
    else:
        default = f"`{given}`"
    return f"| {names} | {_cell(value)} | {default} | {_cell(option.help)} |"


def _kind(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    kind = (get_args(annotation) or (annotation,))[0]
    return KINDS.get(kind, kind.__name__)


def _metavar(argument: Any) -> str:
    name = argument.name.upper() + ("…" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _first_line(verb: Any) -> str:
    return _cell(inspect.cleandoc(verb.help or "").splitlines()[0])


def _fill(entries: list[Any] | None) -> bool:
    for entry in entries or []:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if value == FOLDER:
                entry[title] = list(pages())
                return True
            if isinstance(value, list) and _fill(value):
                return True
    return False
