"""A user's own registry file, for tests that need a small encoder with class and register tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BASE: dict[str, Any] = {
    "title": "Tiny",
    "loader": "timm",
    "hub": "",
    "revision": "",
    "architecture": "vit_tiny_patch16_224",
    "build": {"num_classes": 0, "depth": 2, "reg_tokens": 4, "img_size": 64},
    "pooling": "cls",
    "prefix_tokens": 5,
    "dim": 192,
    "token_dim": 192,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "resize": 0,
    "crop": 64,
    "interpolation": "bicubic",
    "antialias": True,
    "px": 64,
    "mpp": [0.25],
    "compute_dtype": "float32",
    "licence": "MIT",
    "gated": False,
    "parameters": 0,
    "parameters_source": "not counted",
    "reference": "none",
}


def write(folder: Path, **tables: dict[str, Any]) -> Path:
    """Write rows that differ from the tiny one by the given fields; ``_`` in a name stands for ``-``."""
    lines = []
    for name, fields in tables.items():
        lines.append(f"[encoder.{name.replace('_', '-')}]")
        lines += [f"{key} = {_toml(value)}" for key, value in {**BASE, **fields}.items()]
    path = folder / "my.toml"
    path.write_text("\n".join(lines))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)
