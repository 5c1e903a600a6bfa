"""Golden vectors: what an encoder gives for two fixed patches, so that another transform, pooling or precision shows.

The patches are arithmetic on whole numbers, the same to the bit everywhere. One has the encoder's native side; the other one
is a quarter wider, because cropping and resizing agree on a patch of just the right size. Vectors of seeded random builds and
of the built-in encoders ship with the package (``golden.json``); those of real weights are recorded by who has them.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.encoders.spec import RANDOM
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.encoders.builder import Encoder

SHIPPED = Path(__file__).with_name("golden.json")
#: Largest distance from the golden vector that passes, as a share of its norm. Between machines float32 moves by some 1e-6
#: and float16 by some 1e-3; bfloat16 in the place of float16 moves a vector by more than the bound for float16.
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}
SAME, DIFFERS, UNKNOWN = "same", "differs", "unknown"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An encoder against its golden vectors.

    Attributes
    ----------
    status
        ``same``, ``differs``, or ``unknown`` where no vector is known for these weights.
    error
        Largest distance from a golden vector, as a share of its norm.
    cosine
        Smallest cosine with a golden vector.
    tolerance
        Largest error that passes, by the compute dtype the vector was recorded with.
    text
        One line for the user.
    """

    status: str
    error: float | None
    cosine: float | None
    tolerance: float | None
    text: str


def golden_patch(px: int) -> np.ndarray:
    """Draw a patch in the colours of H&E with detail at several scales and no symmetry: uint8 (px, px, 3)."""
    y, x = np.mgrid[:px, :px].astype(np.int64)

    def wave(position: np.ndarray, period: int) -> np.ndarray:
        return np.abs(position % (2 * period) - period) * 255 // period

    coarse, fine = wave(3 * x + 2 * y, 97), wave(x - 4 * y + x * y // 64, 23)
    finest = (x * 7 + y * 13 + x * y) % 32
    red = 150 + coarse * 80 // 255 - fine * 50 // 255 + finest // 2
    green = 90 + wave(x + 5 * y, 71) * 90 // 255 - fine * 40 // 255 + finest
    blue = 160 + wave(2 * x - y, 131) * 60 // 255 - fine * 20 // 255 + finest // 4
    return np.clip(np.stack([red, green, blue], axis=2), 0, 255).astype(np.uint8)


def vectors(encoder: Encoder) -> np.ndarray:
    """Encode the golden patches, one at a time: float32 (patches, dim)."""
    return np.concatenate([encoder.encode(golden_patch(px)[None]) for px in _sides(encoder)])


def record(encoder: Encoder) -> dict[str, Any]:
    """Give what is kept of an encoder: plain data that identifies it, and its vectors."""
    return {
        "encoder": encoder.versioned_name,
        "weights": _weights(encoder),
        "made_with": {name: version(name) for name in ("torch", "timm")},
        "compute_dtype": encoder.compute_dtype,
        "device": encoder.device,
        "px": list(_sides(encoder)),
        "vectors": base64.b64encode(vectors(encoder).astype("<f4").tobytes()).decode(),
    }


def load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a file of golden vectors: encoder name → records; empty where there is none.

    Raises
    ------
    InputError
        The file is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: golden vectors can't be read ({error}); delete it and record them again") from error
    fields = {"encoder", "weights", "compute_dtype", "px", "vectors"}
    if not isinstance(found, dict) or not all(
        isinstance(records, list) and all(isinstance(one, dict) and fields <= set(one) for one in records)
        for records in found.values()
    ):
        raise InputError(f"{path}: these are no golden vectors; delete it and record them again")
    return found


def compare(encoder: Encoder, records: list[dict[str, Any]]) -> Comparison:
    """Compare an encoder with the golden vectors of its weights.

    Parameters
    ----------
    encoder
        As built.
    records
        Those of its name, from :func:`load`; the newest with its weights counts.
    """
    weights = _weights(encoder)
    known = [one for one in records if one["weights"] == weights]
    if not known:
        text = f"no golden vector is known for weights {weights}; --record keeps this one"
        return Comparison(UNKNOWN, None, None, None, text)
    golden = known[-1]
    expected = np.frombuffer(base64.b64decode(golden["vectors"]), "<f4").reshape(len(golden["px"]), -1)
    found = vectors(encoder)
    tolerance = TOLERANCE[golden["compute_dtype"]]
    if found.shape != expected.shape:
        text = f"gives {found.shape[1]} numbers, its golden vector has {expected.shape[1]}"
        return Comparison(DIFFERS, None, None, tolerance, text)
    if not np.isfinite(found).all():
        return Comparison(DIFFERS, None, None, tolerance, "gives NaN or infinity")
    norms = np.linalg.norm(expected, axis=1)
    error = float((np.linalg.norm(found - expected, axis=1) / norms).max())
    cosine = float(((found * expected).sum(axis=1) / norms / np.linalg.norm(found, axis=1)).min())
    if error > tolerance:
        text = f"is {error:.2g} away from its golden vector, {tolerance:g} is allowed: transform, pooling or precision differ"
        return Comparison(DIFFERS, error, cosine, tolerance, text)
    return Comparison(SAME, error, cosine, tolerance, "gives its golden vector")


def _weights(encoder: Encoder) -> str:
    """Digest of trained weights. Random ones are drawn on the spot, perhaps otherwise in the last bit: their seed tells."""
    return f"random/{encoder.spec.seed}" if encoder.spec.weights == RANDOM else encoder.weights


def _sides(encoder: Encoder) -> tuple[int, ...]:
    """Sides of the golden patches in pixels: the built-in encoders take a patch as it is."""
    row = encoder.row
    px = row.px if row else encoder.transform.crop or 224
    return (px,) if row is not None and row.loader == "builtin" else (px, px * 5 // 4)
