"""Identity: the recipe of an embedding, and the ids hashed from it (DESIGN §2 rule 1)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE_VERSION = 1


def canonical_json(value: Any) -> str:
    """Serialise ``value`` so that equal content gives equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Hex sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides how a patch becomes a vector.

    Changing any field changes :attr:`id`. Worker count, device count, batch size and thread count are no part of it.

    Parameters
    ----------
    patch_um
        Side of the square patch, µm.
    patch_px
        Side of the patch after resampling, pixels.
    mpp
        Microns per pixel the patch is read at, ``patch_um / patch_px``.
    resampling
        Interpolation used to reach ``mpp``.
    stain_normalisation
        Name of the stain normalisation applied to the patch, ``"none"`` when there is none.
    encoder
        The encoder's name, with its version where it has one.
    weights
        Digest of the encoder's weights.
    transform
        What happens to the patch before the encoder (resize, crop, mean, std …), as data.
    pooling
        How the encoder's output becomes one vector.
    prefix_tokens
        Class and register tokens in front of the patch tokens; 0 where there are no tokens.
    views
        The views of a patch that are averaged or stored, ``"identity"`` for the patch as it is.
    compute_dtype, store_dtype
        NumPy-style names of the forward pass's and the array's dtype.
    version
        Version of this recipe format.
    """

    patch_um: float
    patch_px: int
    mpp: float
    resampling: str
    stain_normalisation: str
    encoder: str
    weights: str
    transform: dict[str, Any]
    pooling: str
    prefix_tokens: int
    views: str
    compute_dtype: str
    store_dtype: str
    version: int = RECIPE_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Give the recipe as plain JSON-able data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Read a recipe back from :meth:`as_dict`."""
        return cls(**data)

    @property
    def id(self) -> str:
        """Hex sha256 of the canonical JSON of all fields."""
        return digest(self.as_dict())


def spots_digest(spot_ids: Sequence[str], coordinates: np.ndarray) -> str:
    """Hex sha256 of ordered spot ids and their coordinates.

    Parameters
    ----------
    spot_ids
        Barcodes in row order, length n.
    coordinates
        Level-0 pixel centres (x, y), shape (n, 2), float64.
    """
    state = hashlib.sha256()
    for spot in spot_ids:
        state.update(spot.encode() + b"\0")
    state.update(np.ascontiguousarray(coordinates, dtype="<f8").tobytes())
    return state.hexdigest()


def embedding_id(recipe_id: str, fingerprint: str, spots: str) -> str:
    """Id of one embedding array: hash of (recipe id, image fingerprint, digest of ordered spots)."""
    return digest({"recipe": recipe_id, "image": fingerprint, "spots": spots})
