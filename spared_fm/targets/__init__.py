"""Targets: cohorts, panels, completion and the published preprocessing."""

from __future__ import annotations

from typing import Any

__all__ = ["process_dataset"]


def __getattr__(name: str) -> Any:
    if name == "process_dataset":  # numpy, pandas and scipy are imported with the first use
        from spared_fm.targets.spared.process import process_dataset

        return process_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
