from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from spared_fm.encoders.builder import build
from spared_fm.encoders.spec import resolve
from spared_fm.encoders.transform import Transform
from spared_fm.errors import InputError


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224", "vit_tiny_patch16_384", "resnet18"])
@pytest.mark.parametrize("px", [224, 256, 300])
def test_pixels_are_those_of_timms_own_transform(name: str, px: int):
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((px, px)))
    noisy = rng.integers(0, 256, (px, px, 3), dtype=np.uint8)
    patches = np.stack([smooth, noisy])
    config = timm.data.resolve_data_config({}, model=timm.create_model(name, num_classes=0))
    reference = timm.data.create_transform(**config, is_training=False)
    expected = torch.stack([reference(Image.fromarray(patch)) for patch in patches])
    found = build(resolve(f"timm:{name}", "random")).transform(patches)
    assert found.shape == expected.shape
    grey = (found - expected).abs() * torch.tensor(config["std"]).view(3, 1, 1) * 255
    assert grey.max() <= 2.01
    assert (grey > 0.5).float().mean() < 0.05


def test_no_step_changes_nothing_but_the_scale():
    patches = np.random.default_rng(0).integers(0, 256, (2, 17, 17, 3), dtype=np.uint8)
    found = Transform()(patches)
    np.testing.assert_allclose(found.numpy(), patches.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_mean_and_std_are_not_swapped():
    patches = np.full((1, 4, 4, 3), 255, dtype=np.uint8)
    found = Transform(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))(patches)
    np.testing.assert_allclose(found[0, :, 0, 0], [1.0, 3.0, 0.5], rtol=1e-6)


def test_a_crop_larger_than_the_patch():
    with pytest.raises(InputError, match="patches of 16 pixels are smaller than the encoder's crop of 32"):
        Transform(crop=32)(np.zeros((1, 16, 16, 3), dtype=np.uint8))
