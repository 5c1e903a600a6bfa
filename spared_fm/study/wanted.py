"""What an encode is asked for: encoders with their options, resolved to specs and patches. `encode` and `forecast` share it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from spared_fm.encoders.spec import native_patch, resolve
from spared_fm.errors import InputError
from spared_fm.slides.patches import PatchSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spared_fm.encoders.spec import EncoderSpec


@dataclasses.dataclass(frozen=True)
class Job:
    """One array to fill: the encoder, the patches it is given, and the key, None for the encoder's own."""

    spec: EncoderSpec
    patch: PatchSpec
    key: str | None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Encoders and how their vectors are made.

    Parameters
    ----------
    encoders
        Encoder names (``uni``, ``stain-bank``, ``timm:<model>``), one or several.
    weights, seed, registry
        See :func:`spared_fm.encoders.spec.resolve`.
    key
        Array key instead of the encoder's own; one per encoder.
    patch_um, patch_px
        Patch side in µm and in pixels after resampling; by default the encoder's native ones (112 µm at 224 px for most).
    views
        ``identity``; ``dihedral-mean``: the average over the eight turned and mirrored views; ``dihedral``: all eight vectors,
        one after the other.
    tokens
        Also store the patch tokens, averaged to a grid of tokens × tokens, beside the slide; 0 stores none.
    precision
        ``float32``, ``float16`` or ``bfloat16`` forward pass instead of the encoder's own.
    chunk_rows, batch_size, threads
        Fixed in new arrays for their life; ``threads`` is inside one forward pass, and batches run side by side on all cores.
    store_dtype
        ``float16`` (default; changed to ``float32`` on overflow) or ``float32``.

    Raises
    ------
    InputError
        An option has no meaning.
    """

    encoders: str | Sequence[str]
    weights: str | Path | None = None
    seed: int = 0
    registry: str | Path | None = None
    key: str | Sequence[str] | None = None
    patch_um: float | None = None
    patch_px: int | None = None
    views: str = "identity"
    tokens: int = 0
    precision: str | None = None
    chunk_rows: int | None = None
    batch_size: int = 32
    threads: int = 1
    store_dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.names) > 1:
            raise InputError("--weights goes with one --encoder")
        if self.store_dtype not in ("float16", "float32"):
            raise InputError(f"store dtype {self.store_dtype!r} is not float16 or float32")
        if len(self.keys) != len(self.names):
            raise InputError(f"{len(self.keys)} --key for {len(self.names)} --encoder; give one each")

    @property
    def names(self) -> list[str]:
        """Encoder names."""
        return [self.encoders] if isinstance(self.encoders, str) else list(self.encoders)

    @property
    def keys(self) -> list[str | None]:
        """Array key of each encoder, None for its own."""
        if not self.key:
            return [None] * len(self.names)
        return [self.key] if isinstance(self.key, str) else list(self.key)

    def jobs(self) -> list[Job]:
        """Resolve the encoders: a job for each, and with ``tokens`` one more for each token grid."""
        found = []
        for name, key in zip(self.names, self.keys, strict=True):
            options: dict[str, Any] = {"seed": self.seed, "precision": self.precision, "registry": self.registry}
            spec = resolve(name, self.weights, views=self.views, **options)
            um, px = native_patch(spec)
            patch = PatchSpec(
                um if self.patch_um is None else self.patch_um, px if self.patch_px is None else self.patch_px
            )
            found.append(Job(spec, patch, key))
            if self.tokens:
                grid = resolve(name, self.weights, tokens=self.tokens, **options)
                found.append(Job(grid, patch, f"tokens/{key}" if key else None))
        return found
