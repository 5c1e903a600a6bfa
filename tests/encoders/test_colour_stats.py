from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spared_fm.encoders.colour_stats import ColourStats
from spared_fm.errors import InputError
from spared_fm.study.api import Study


def encode(pixels: np.ndarray) -> np.ndarray:
    """Vectors of uint8 patches (batch, h, w, 3)."""
    return ColourStats()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).numpy()


def test_by_hand():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    exact = pixels.reshape(3, -1, 3).astype(np.float64)
    density = -np.log((exact + 1) / 256)
    wanted = np.concatenate([f(v, axis=1) for v in (exact / 255, density) for f in (np.mean, np.std)], axis=1)
    found = encode(pixels)
    assert (found.dtype, found.shape) == (np.float32, (3, ColourStats.dim))
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


@pytest.mark.parametrize("level", [0, 37, 254, 255])
def test_an_even_patch_has_no_spread(level: int):
    found = encode(np.full((1, 224, 224, 3), level, np.uint8))[0].reshape(4, 3)
    np.testing.assert_array_equal(found[[1, 3]], 0.0)
    np.testing.assert_array_equal(found[0], np.float32(level) / np.float32(255))
    np.testing.assert_allclose(found[2], -np.log((level + 1) / 256), rtol=1e-6, atol=1e-7)


def test_a_pale_patch_keeps_its_little_spread():
    pixels = np.full((1, 224, 224, 3), 254, np.uint8)
    pixels[0, 0, 0] = 255  # one pixel of fifty thousand: a difference of squares in float32 would not see it
    n = 224**2
    np.testing.assert_allclose(encode(pixels)[0, 3:6], np.sqrt((n - 1) / n**2) / 255, rtol=1e-4)


def test_texture_and_turns_are_not_seen():
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    shuffled = pixels.reshape(-1, 3)[np.random.default_rng(2).permutation(64 * 64)].reshape(pixels.shape)
    np.testing.assert_allclose(encode(shuffled), encode(pixels), rtol=1e-5)


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8)]
)
def test_what_is_no_patch(bad: torch.Tensor):
    with pytest.raises(InputError, match="colour-stats: got"):
        ColourStats()(bad)


@pytest.mark.full
@pytest.mark.parametrize(
    ("train", "test", "patch_um", "floor"),
    [  # the side of the patch is not stated with the floors; at 112 µm it is .419 on her2st
        (["her2st_C2", "her2st_C3"], "her2st_C4", 200.0, 0.450),
        (["mob_rep1", "mob_rep12"], "mob_rep11", 112.0, 0.490),
    ],
)
def test_the_floors_stated_with_the_real_slides(
    shared_data: Path, tmp_path: Path, train: list[str], test: str, patch_um: float, floor: float
):
    study = Study(tmp_path / "store", create=True)
    for slide in [*train, test]:
        study.ingest(shared_data / slide, split="test" if slide == test else "train")
    study.encode("colour-stats", patch_um=patch_um, key="colour")
    study.cohort("c", slides=[*train, test], n_genes=50, panel="variance")
    found = study.benchmark("c", encoders=["colour"], heads=["ridge"])
    assert found["pcc_gene"].iloc[0] == pytest.approx(floor, abs=0.01)
