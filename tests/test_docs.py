"""The documentation builds without a warning, and every block of code in it runs, or is marked as not run and is checked."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docs_material import REPOSITORY, make

if TYPE_CHECKING:
    from collections.abc import Iterator

Run = Future[subprocess.CompletedProcess[str] | None]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)")
NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->")
PAGE_SECONDS = 300
DRIVER = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for kind, line, code in json.load(open(sys.argv[1])):
    print(f"--- {sys.argv[2]}:{line} ({kind})", flush=True)
    if kind == "python":
        exec(compile("\\n" * line + code, sys.argv[2], "exec"), names)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
"""
"""Runs a page's blocks in their order; its Python blocks share their names."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line it begins at, its text, and why it isn't run (empty: it is)."""

    kind: str
    line: int
    code: str
    not_run: str


def blocks_of(text: str) -> list[Block]:
    """Find the fenced blocks of a page; ``<!-- not run: reason -->`` counts for the block that follows it at once."""
    found, lines, reason = [], iter(enumerate(text.splitlines(), 1)), ""
    for number, line in lines:
        if fence := FENCE.match(line):
            code = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                code.append(inner)
            found.append(Block(fence[1], number, "\n".join(code), reason))
            reason = ""
        elif line.strip():
            reason = mark[1] if (mark := NOT_RUN.fullmatch(line.strip())) else ""
    return found


def commands_of(code: str) -> list[list[str]]:
    """Split a shell block into the words of its simple commands; good enough for documentation."""
    code = re.sub(r"(^|\s)#.*$", "", code.replace("\\\n", " "), flags=re.MULTILINE)
    words = shlex.shlex(code, posix=True, punctuation_chars=";|&()\n")
    words.whitespace, words.whitespace_split, words.commenters = " \t", True, ""
    commands: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set(";|&()\n"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def check_command(words: list[str]) -> None:
    """Look up the verb and the options of a ``spared-fm`` command, and the goal of a ``make`` one."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    if words[0] == "make":
        goals = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(goals), f"make has no goal {set(words[1:]) - set(goals)}"
    if Path(words[0]).name != "spared-fm":
        return
    command, rest = _app(), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert command is not _app() or not rest or rest[0].startswith("-"), f"no verb {rest[0]!r}"
    known = {"--help", "--debug"} | {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]
    assert not unknown, f"{' '.join(words[:3])} has no option {', '.join(unknown)}"


def _app() -> Any:
    import typer

    from spared_fm.cli import app

    if not hasattr(_app, "command"):
        _app.command = typer.main.get_command(app)  # type: ignore[attr-defined]
    return _app.command  # type: ignore[attr-defined]


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_blocks_are_right(page: Path):
    """Syntax, verbs and options of every block, also of those that can't run here. Indented code is never run: there is none."""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        where = f"{ids(page)}:{block.line}"
        assert block.kind, f"{where}: a block without a language; say bash, python, toml, json or text"
        if block.kind == "python":
            compile("\n" * block.line + block.code, str(page), "exec")
        elif block.kind == "toml":
            tomllib.loads(block.code)
        elif block.kind == "json":
            json.loads(block.code)
        elif block.kind == "bash":
            parsed = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
            assert parsed.returncode == 0, f"{where}: {parsed.stderr}"
            for words in commands_of(re.sub(r"<<'(\w+)'.*?\n\1$", "", block.code, flags=re.DOTALL | re.MULTILINE)):
                try:
                    check_command(words)
                except AssertionError as error:
                    raise AssertionError(f"{where}: {error}") from None
    assert not re.search(r"^ {4}(?:spared-fm|python|pip) ", page.read_text(encoding="utf-8"), re.MULTILINE), page


def test_a_wrong_block_is_seen():
    page = "a\n<!-- not run: here -->\n\n```bash\nspared-fm info --stor S | cat\n```\n```python\nx = 1\n```\n"
    first, second = blocks_of(page)
    assert (first.kind, first.line, first.not_run, second.not_run) == ("bash", 4, "here", "")
    assert commands_of(first.code) == [["spared-fm", "info", "--stor", "S"], ["cat"]]
    with pytest.raises(AssertionError, match="no option --stor"):
        check_command(commands_of(first.code)[0])
    with pytest.raises(AssertionError, match="no verb 'enkode'"):
        check_command(["spared-fm", "enkode"])
    with pytest.raises(AssertionError, match="no goal"):
        check_command(["make", "coffee"])
    check_command(["A=1", ".venv/bin/spared-fm", "benchmark", "run", "m.toml", "-s", "S", "--workers", "2"])


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def runs(
    material: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Path, Run]]:
    """Begin to run the pages whose tests were chosen, two at a time."""
    items = [item for item in request.session.items if item.name.startswith("test_blocks_run[")]
    pages = [item.callspec.params["page"] for item in items]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        yield {page: pool.submit(run_page, page, material, tmp_path_factory.mktemp("page")) for page in pages}


def run_page(page: Path, material: Path, folder: Path) -> subprocess.CompletedProcess[str] | None:
    """Run a page's blocks in a copy of the material; None where it has none to run."""
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    steps = [(b.kind, b.line, b.code) for b in blocks if b.kind in ("python", "bash") and not b.not_run]
    if not steps:
        return None
    shutil.copytree(material, folder / "here", symlinks=True)
    (folder / "steps.json").write_text(json.dumps(steps))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder / "steps.json"), ids(page)],
        cwd=folder / "here",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PAGE_SECONDS,
    )


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_blocks_run(page: Path, runs: dict[Path, Run]):
    found = runs[page].result()
    assert found is None or found.returncode == 0, found.stdout[-4000:]


@pytest.mark.full
def test_site_builds_without_a_warning(tmp_path: Path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    for verb in _app().commands:
        assert (tmp_path / "site" / "cli" / f"{verb}.html").is_file()


@pytest.mark.full
def test_specification_names_what_is_written(material: Path):
    from spared_fm.heads import io as heads
    from spared_fm.store.layout import FORMAT_VERSION, Layout
    from spared_fm.study import index_open, matrix_kept
    from spared_fm.targets.completion import folder as completers

    text = (DOCS / "store-format.md").read_text(encoding="utf-8")
    layout = Layout.open(material / "S")
    slide, array = layout.slide("sample1"), layout.embedding("sample1", "stain-bank")
    receipt = json.loads(layout.files.read(f"{array}/receipts/0.json"))
    records = [layout.attributes(node) or {} for node in (slide, array, layout.cohort("C"))]
    fields = {field for record in (*records, records[0]["image"], records[1]["recipe"], receipt) for field in record}
    assert {"counts_digest", "embedding_id", "settings_digest", "pooling", "crc32c"} <= fields
    unnamed = {field for field in fields | {*records[2]["layers"]} if not re.search(rf"`[^`]*\b{field}\b[^`]*`", text)}
    assert not unnamed
    assert f"\nVersion {FORMAT_VERSION}. " in text
    assert f"| `format` | {heads.FORM.format} | {completers.FORM.format} |" in text
    assert f"| `format` | {index_open.FORMAT} |" in text
    assert f"(`format` {matrix_kept.FORMAT}," in text


def _said(part: ast.expr) -> str:
    """Text of a message in the code, with a mark where a value goes."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    if isinstance(part, ast.JoinedStr):
        return "".join(_said(value) for value in part.values)
    if isinstance(part, ast.BinOp):
        return _said(part.left) + _said(part.right)
    return "\0"


@pytest.mark.full
def test_messages_of_the_faq_are_said_by_the_code():
    said = []
    for path in (REPOSITORY / "spared_fm").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said += [_said(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)]
    quoted = re.findall(r"^\| (`.*?`) \|", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    messages = [message for cell in quoted for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 60
    unsaid = []
    for message in messages:
        parts = [part.strip(" '") for part in message.split("…")]
        if not any(all(part in text for part in parts) for text in said):
            unsaid.append(message)
    assert not unsaid, "\n".join(unsaid)
