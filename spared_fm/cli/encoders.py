"""Commands about encoders: the registry as a table, and their golden vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spared_fm.cli.output import AsJson, print_result
from spared_fm.errors import InputError

app = typer.Typer(name="encoders", help="List the encoders there are, or check one against its golden vectors.")

Registry = Annotated[Path | None, typer.Option(help="TOML file with encoders of your own.")]
SHOWN = ("name", "dim", "px", "mpp", "pooling", "compute_dtype", "licence", "gated", "weights", "lacks")


@app.callback(invoke_without_command=True, epilog="Example: `spared-fm encoders --name 'kaiko*' --ungated`")
def encoders(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Glob of names.")] = "*",
    registry: Registry = None,
    dim: Annotated[int | None, typer.Option(help="Only vectors of this length.")] = None,
    ungated: Annotated[bool, typer.Option("--ungated", help="Only those whose weights need no request.")] = False,
    ready: Annotated[bool, typer.Option("--ready", help="Only those that run here without a network.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the encoders: vector length, native patch, licence, and whether their weights are here."""
    if context.invoked_subcommand is not None:
        return
    from spared_fm.study.encoders import encoders as run

    rows = run(name, registry=registry, dim=dim, ungated=ungated, ready=ready)
    if not as_json:
        rows = [{**{field: row[field] for field in SHOWN}, "gated": "yes" if row["gated"] else "no"} for row in rows]
    print_result(rows, as_json)


@app.command(epilog="Example: `spared-fm encoders verify uni --weights uni.safetensors`")
def verify(
    encoder: Annotated[str, typer.Argument(help="Encoder name.", show_default=False)],
    weights: Annotated[str | None, typer.Option(help="random, pretrained, or a file.")] = None,
    registry: Registry = None,
    precision: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    golden: Annotated[Path | None, typer.Option(help="Your file of golden vectors.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep this encoder's vectors in it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare an encoder's vectors for two fixed patches with those known; exit code 1 when they differ."""
    from spared_fm.study.encoders import verify_encoder

    found = verify_encoder(
        encoder, weights=weights, registry=registry, precision=precision, device=device, golden=golden, record=record
    )
    print_result(found, as_json)
    if found["status"] == "differs" and not record:
        raise InputError(f"encoder {encoder} {found['text']}")
