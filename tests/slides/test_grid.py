from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.slides.counts import read_slides
from spared_fm.slides.grid import grid_points
from tests.slides.test_tissue import MPP, slide


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """2 mm of slide; the tissue reaches from x 600 to 1400 µm and y 400 to 1600 µm."""
    path = tmp_path / "s1.tif"
    resolution = (1e4 / MPP, 1e4 / MPP)
    tifffile.imwrite(
        path, slide(), photometric="rgb", tile=(256, 256), resolution=resolution, resolutionunit="CENTIMETER"
    )
    return path


@settings(deadline=None)
@given(
    width=st.integers(1, 900), height=st.integers(1, 900), mpp=st.floats(0.1, 3), patch=st.floats(5, 300),
    spacing=st.floats(50, 300),
)  # fmt: skip
def test_patches_lie_inside_and_one_more_would_not(
    width: int, height: int, mpp: float, patch: float, spacing: float
) -> None:
    position, xy = grid_points(width, height, mpp, patch, spacing)
    corner = (xy + 0.5) * mpp - patch / 2  # µm from the image's corner
    np.testing.assert_allclose(corner, position * spacing, atol=1e-6)
    assert (corner + patch <= np.array([width, height]) * mpp + 1e-6).all()
    for axis, size in enumerate((width, height)):
        following = position[:, axis].max() + 1 if len(position) else 0
        room = size * mpp - (following * spacing + patch)
        if len(position) or min(width, height) == size:
            assert room < 1e-6
    assert [tuple(p) for p in position] == sorted({tuple(p) for p in position}, key=lambda p: (p[1], p[0]))


def test_a_plain_slide_becomes_a_grid_on_its_tissue(image: Path) -> None:
    [data] = read_slides(image)
    adata = data.adata
    assert (data.id, data.image, data.image_kind, adata.n_vars, adata.X) == ("s1", image, "fullres", 0, None)
    centre = (adata.obsm["spatial"] + 0.5) * MPP
    inside = (np.abs(centre - [1000, 1000]) <= [400, 600]).all(axis=1)
    assert inside.all()  # half of a patch on tissue: its centre is, but for corners
    assert adata.n_obs >= 0.8 * 800 * 1200 / 112**2
    assert (adata.obs["tissue_fraction"] >= 0.5).all()
    assert list(adata.obs_names) == [
        f"x{c}y{r}" for r, c in zip(adata.obs["array_row"], adata.obs["array_col"], strict=True)
    ]
    assert adata.obs_names.is_unique
    pitch = np.diff(centre[adata.obs["array_row"] == adata.obs["array_row"].iloc[0], 0])
    np.testing.assert_allclose(pitch, 112.0)
    assert data.metadata["grid_spacing_um"] == 112.0
    assert data.metadata["grid_tissue_threshold"] > 0


def test_spacing_and_tissue_share(image: Path) -> None:
    [plain], [dense], [strict], [all_of_it] = (
        read_slides(image, **options) for options in ({}, {"spacing_um": 56}, {"min_tissue": 1.0}, {"min_tissue": 0})
    )  # fmt: skip
    assert dense.adata.n_obs == pytest.approx(4 * plain.adata.n_obs, rel=0.15)
    assert set(strict.adata.obs_names) < set(plain.adata.obs_names) < set(all_of_it.adata.obs_names)
    assert all_of_it.adata.n_obs == 17 * 17
    assert "tissue_fraction" not in all_of_it.adata.obs


def test_a_folder_with_one_image(image: Path) -> None:
    assert read_slides(image.parent)[0].id == image.parent.name
    assert read_slides(image.parent, slide="other")[0].id == "other"
    (image.parent / "notes.txt").write_text("x")
    assert read_slides(image.parent)[0].image == image
    Image.new("RGB", (9, 9)).save(image.parent / "b.png")
    with pytest.raises(InputError, match="2 found; give the image itself"):
        read_slides(image.parent)


def test_mpp_is_needed_before_the_grid(tmp_path: Path) -> None:
    Image.fromarray(slide()).save(tmp_path / "s.png")
    with pytest.raises(InputError, match=r"s\.png: .*--mpp"):
        read_slides(tmp_path / "s.png")
    [data] = read_slides(tmp_path / "s.png", mpp=MPP)
    assert data.metadata["grid_mpp"] == MPP
    assert np.diff(data.adata.obsm["spatial"][:2, 0])[0] * MPP == pytest.approx(112)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing_um": 0.0}, "--spacing-um 0"),
        ({"spacing_um": float("nan")}, "--spacing-um nan"),
        ({"min_tissue": 1.5}, "--min-tissue 1.5"),
        ({"mpp": 0.01}, "--mpp 0.01"),
        ({"mpp": 0.1}, "smaller than a patch"),
        ({"slide": "a/b"}, "--slide a-b"),
    ],
)
def test_options_without_meaning(image: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_slides(image, **options)


def test_a_blank_slide(tmp_path: Path) -> None:
    Image.new("RGB", (900, 900), (240, 240, 240)).save(tmp_path / "blank.png")
    with pytest.raises(InputError, match=r"blank\.png: no tissue"):
        read_slides(tmp_path / "blank.png", mpp=1.0)
