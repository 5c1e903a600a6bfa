from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.slides.images import open_image
from spared_fm.slides.tissue import Tissue, colour_density, find_tissue, otsu
from tests.slides.layouts import ArrayImage

MPP = 2.0


def slide(lamp: float = 1.0, *, tissue: bool = True, side: int = 1000) -> np.ndarray:
    """4 mm² of glass with pink tissue in the middle (x 300–700, y 200–800), a shadow, a black border and dust."""
    image = np.full((side, side, 3), 238.0)
    image[:, 850:900] = 120.0  # shadow: neutral
    image[:12] = image[:, :12] = 0.0  # what the scanner didn't reach
    if tissue:
        image[200:800, 300:700] = (205, 130, 180)
    image[100:108, 100:108] = (150, 40, 90)  # debris: 256 µm²
    image = image * lamp + np.random.default_rng(0).normal(0, 2.5, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("lamp", [1.0, 0.8, 0.6])
def test_tissue_is_found_and_neutral_things_are_not(lamp: float) -> None:
    tissue = find_tissue(ArrayImage(slide(lamp)), MPP)
    truth = np.zeros((1000, 1000), bool)
    truth[200:800, 300:700] = True
    truth = truth[::4, ::4]  # 8 µm per mask pixel
    assert tissue.mask.shape == truth.shape
    assert tissue.scale == pytest.approx(0.25)
    wrong = tissue.mask != truth
    assert wrong.mean() < 0.01
    assert not tissue.mask[:, 210:].any()  # the shadow
    assert not tissue.mask[:40].any()  # the border and the debris


def test_holes_smaller_than_the_least_area_are_filled() -> None:
    image = slide()
    image[400:440, 400:440] = 238  # 80 µm: a vessel
    image[500:700, 400:600] = 238  # 400 µm: a lumen
    mask = find_tissue(ArrayImage(image), MPP).mask
    assert mask[105, 105]
    assert not mask[150, 125]


def test_a_slide_full_of_tissue_is_not_cut_in_two() -> None:
    pale, dark = (230, 190, 215), (120, 60, 140)
    image = np.empty((600, 600, 3), np.uint8)
    image[:, :300], image[:, 300:] = pale, dark
    assert find_tissue(ArrayImage(image), MPP).mask.mean() > 0.99


def test_a_blank_slide_is_refused() -> None:
    for blank in (slide(tissue=False), np.full((500, 500, 3), 255, np.uint8), np.zeros((500, 500, 3), np.uint8)):
        with pytest.raises(InputError, match="array: no tissue found"):
            find_tissue(ArrayImage(blank), MPP)


def test_the_annotated_spots_of_real_slides_lie_on_the_tissue_found(shared_data: Path) -> None:
    for name, mpp in (("her2st_C2", 0.69), ("mob_rep1", 2.75)):
        with open_image(shared_data / name / "image.jpg") as image:
            tissue = find_tissue(image, mpp)
        xy = ad.read_h5ad(shared_data / name / "counts.h5ad").obsm["spatial"]
        assert (tissue.fraction(xy, 112 / mpp) >= 0.5).mean() > 0.9
        assert tissue.mask.mean() < 0.4  # much of both slides is glass


@settings(deadline=None)
@given(x=st.floats(-5, 45), y=st.floats(-5, 35), side=st.floats(0.5, 30), scale=st.sampled_from([1.0, 0.5, 0.25]))
def test_fraction_is_the_share_of_mask_pixels(x: float, y: float, side: float, scale: float) -> None:
    mask = np.random.default_rng(1).random((30, 40)) < 0.5
    found = Tissue(mask, scale, 0.1).fraction(np.array([[x / scale, y / scale]]), side / scale)[0]
    cx, cy, half = x + 0.5 * scale, y + 0.5 * scale, max(side / 2, 0.5)
    x0, x1, y0, y1 = (round(v) for v in (cx - half, cx + half, cy - half, cy + half))
    padded = np.pad(mask, 60)
    box = padded[y0 + 60 : max(y1, y0 + 1) + 60, x0 + 60 : max(x1, x0 + 1) + 60]
    area = max(x1 - x0, 1) * max(y1 - y0, 1)
    if x1 > x0 and y1 > y0:
        assert found == pytest.approx(box.sum() / area)
    assert 0 <= found <= 1


def test_colour_density_is_blind_to_the_lamp_and_zero_for_grey() -> None:
    pink = np.array([[[200.0, 100.0, 150.0]]])
    assert colour_density(pink)[0, 0] == pytest.approx(np.log10(2), abs=1e-6)
    assert colour_density(pink * 0.5)[0, 0] == pytest.approx(np.log10(2), abs=1e-6)
    assert colour_density(np.full((1, 1, 3), 90.0))[0, 0] == 0


@settings(deadline=None)
@given(st.integers(20, 200), st.integers(20, 200))
def test_otsu_separates_two_heaps(n: int, m: int) -> None:
    rng = np.random.default_rng(n * 7 + m)
    low, high = rng.normal(1, 0.1, n), rng.normal(5, 0.1, m)
    threshold = otsu(np.concatenate([low, high]))
    assert low.max() <= threshold + 0.02
    assert threshold <= high.min() + 0.02
