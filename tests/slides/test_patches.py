from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import minimize_scalar

from spared_fm.errors import InputError
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec, UnreadablePatchError, check_upsample, reflect
from tests.slides.layouts import ArrayImage, smooth_image

PERIOD_UM = 22.4
SOURCE_MPPS = [0.23, 0.25, 0.30, 0.45, 0.59, 0.69, 1.3, 2.75, 4.5]


def grating(mpp: float, size_um: float = 180.0) -> np.ndarray:
    """Stripes across (red) and down (green) whose period is PERIOD_UM in tissue."""
    n = math.ceil(size_um / mpp)
    wave = 127 + 100 * np.cos(2 * np.pi * (np.arange(n) + 0.5) * mpp / PERIOD_UM)
    image = np.zeros((n, n, 3), np.uint8)
    image[..., 0], image[..., 1] = np.rint(wave)[None, :], np.rint(wave)[:, None]
    return image


def period_px(profile: np.ndarray, near: float) -> float:
    """Period in pixels by a least-squares fit of one sinusoid."""
    x = np.arange(len(profile)) + 0.5

    def residual(period: float) -> float:
        basis = np.column_stack([np.ones_like(x), *(f(2 * np.pi * x / period) for f in (np.cos, np.sin))])
        return float(np.square(profile - basis @ np.linalg.lstsq(basis, profile, rcond=None)[0]).sum())

    return float(minimize_scalar(residual, bounds=(0.9 * near, 1.1 * near), method="bounded").x)


def measured_mpp(patch: np.ndarray, spec: PatchSpec) -> tuple[float, float]:
    near = PERIOD_UM / spec.mpp
    across = period_px(patch[..., 0].mean(axis=0), near)
    down = period_px(patch[..., 1].mean(axis=1), near)
    return PERIOD_UM / across, PERIOD_UM / down


def blob(width: int, height: int, x: float, y: float, sigma: float) -> np.ndarray:
    """A Gaussian spot centred (x, y) pixels from the corner of the image, edges at whole numbers."""
    gx = np.exp(-0.5 * ((np.arange(width) + 0.5 - x) / sigma) ** 2)
    gy = np.exp(-0.5 * ((np.arange(height) + 0.5 - y) / sigma) ** 2)
    return np.repeat(np.rint(255 * gy[:, None] * gx[None, :]).astype(np.uint8)[..., None], 3, axis=2)


def centroid(patch: np.ndarray) -> tuple[float, float]:
    """Centre of brightness, pixels from the patch's corner."""
    weight = patch[..., 0].astype(np.float64)
    at = np.arange(len(patch)) + 0.5
    return float(weight.sum(0) @ at / weight.sum()), float(weight.sum(1) @ at / weight.sum())


@pytest.mark.parametrize("mpp", SOURCE_MPPS)
def test_mpp_is_exact_on_a_grating(mpp: float) -> None:
    spec = PatchSpec()
    image = ArrayImage(grating(mpp))
    reader = PatchReader(image, mpp, spec)
    n = image.levels[0].width
    patch = reader.read_one(n / 2 - 0.37, n / 2 + 0.21)
    for found in measured_mpp(patch, spec):
        assert abs(found / spec.mpp - 1) <= 0.01
    assert abs(reader.achieved_mpp / spec.mpp - 1) <= 1e-9
    assert reader.upsample == pytest.approx(mpp / spec.mpp)


@settings(max_examples=40, deadline=None)
@given(
    mpp=st.floats(0.2, 5.0),
    scale=st.sampled_from([1.0, 0.8, 0.286]),
    um=st.floats(80.0, 170.0),
    px=st.integers(96, 256),
    shift=st.floats(-6.0, 6.0),
)
def test_mpp_is_exact_for_any_geometry(mpp: float, scale: float, um: float, px: int, shift: float) -> None:
    spec = PatchSpec(um=um, px=px)
    image = ArrayImage(grating(mpp))  # `mpp` is the image's; a coordinate pixel is finer by `scale`
    reader = PatchReader(image, mpp * scale, spec, scale=scale)
    centre = image.levels[0].width / 2 / scale
    patch = reader.read_one(centre + shift / mpp / scale / 4, centre)
    for found in measured_mpp(patch, spec):
        assert abs(found / spec.mpp - 1) <= 0.01


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(150.0, 250.0),
    y=st.floats(150.0, 250.0),
    mpp=st.floats(0.25, 0.9),
    scale=st.sampled_from([1.0, 0.5, 0.3]),
)
def test_a_marker_at_the_spot_is_in_the_middle(x: float, y: float, mpp: float, scale: float) -> None:
    spec = PatchSpec(um=60.0, px=120)
    side = round(400 * scale)
    image = ArrayImage(blob(side, side, (x + 0.5) * scale, (y + 0.5) * scale, sigma=1.5))
    patch = PatchReader(image, mpp, spec, scale=scale).read_one(x, y)
    assert centroid(patch) == pytest.approx((60.0, 60.0), abs=0.25)


def test_a_whole_number_is_a_pixel_centre() -> None:
    image = np.zeros((21, 21, 3), np.uint8)
    image[8, 12] = 255  # x = 12, y = 8
    patch = PatchReader(ArrayImage(image), 1.0, PatchSpec(um=5, px=5)).read_one(12, 8)
    assert patch[2, 2].tolist() == [255, 255, 255]
    assert patch.sum() == 3 * 255
    np.testing.assert_array_equal(patch, image[6:11, 10:15])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    fx=st.floats(-1.5, 2.5),
    fy=st.floats(-1.5, 2.5),
    mpp=st.floats(0.5, 3.0),
    resample=st.sampled_from(["bicubic", "bilinear", "lanczos"]),
)
def test_borders_are_reflections(width: int, height: int, fx: float, fy: float, mpp: float, resample: str) -> None:
    spec = PatchSpec(um=30.0, px=24, resample=resample)
    pad = 160
    pixels = np.random.default_rng(width * 41 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    x, y = fx * width, fy * height
    ours = PatchReader(ArrayImage(pixels), mpp, spec).read_one(x, y)
    truth = PatchReader(ArrayImage(padded), mpp, spec).read_one(x + pad, y + pad)
    assert np.abs(ours.astype(int) - truth).max() <= 1  # the window's start is rounded differently in float32


@settings(deadline=None)
@given(size=st.integers(1, 30), index=st.lists(st.integers(-200, 200), min_size=1))
def test_reflect_folds_as_numpy_pads(size: int, index: list[int]) -> None:
    padded = np.pad(np.arange(size), (200, 201), mode="reflect")
    found = reflect(np.array(index), size)
    np.testing.assert_array_equal(found, padded[np.array(index) + 200])
    assert found.min() >= 0
    assert found.max() < size


@pytest.mark.parametrize("resample", ["box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("mpp", [0.07, 0.31, 1.3])
def test_the_resampled_window_is_the_same_as_from_the_whole_image(mpp: float, resample: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (560, 600, 3), dtype=np.uint8)
    reader = PatchReader(ArrayImage(pixels), mpp, PatchSpec(um=30, px=50, resample=resample))
    x, y, side = 290.3, 271.8, 30 / mpp
    box = (x + 0.5 - side / 2, y + 0.5 - side / 2, x + 0.5 + side / 2, y + 0.5 + side / 2)
    whole = Image.fromarray(pixels).resize((50, 50), Image.Resampling[resample.upper()], box=box)
    assert np.abs(reader.read_one(x, y).astype(int) - np.asarray(whole)).max() <= 1


def test_a_coarser_level_agrees_with_level_0() -> None:
    top = smooth_image(1024, 768)
    levels = [top, *(np.asarray(Image.fromarray(top).reduce(k)) for k in (2, 4, 8))]
    spec = PatchSpec(um=64.0, px=128)  # 0.5 µm per pixel
    inside, across_the_border = np.array([[500.2, 380.9], [613.0, 299.5]]), np.array([[80.0, 700.0]])
    for mpp, level in ((0.125, 2), (0.13, 1), (0.12, 2), (0.25, 1), (0.3, 0), (0.7, 0)):
        pyramid, single = (PatchReader(ArrayImage(*a), mpp, spec) for a in (levels, levels[:1]))
        assert pyramid.level == level
        assert pyramid.achieved_mpp == pytest.approx(spec.mpp)
        assert pyramid.upsample == pytest.approx(mpp * 2**level / spec.mpp)
        difference = np.abs(pyramid.read(inside).astype(int) - single.read(inside))
        assert difference.mean() < 1.0
        assert difference.max() <= 8
        # the mirror stands in the middle of the border pixel, which is wider in a coarse level
        difference = np.abs(pyramid.read(across_the_border).astype(int) - single.read(across_the_border))
        assert difference.mean() < 2.5


def test_a_coarser_level_does_not_shift_the_patch() -> None:
    top = blob(512, 512, 250.25, 260.75, sigma=12.0)
    levels = [top, np.asarray(Image.fromarray(top).reduce(4))]
    patch = PatchReader(ArrayImage(*levels), 0.125, PatchSpec(um=40, px=80)).read_one(249.75, 260.25)
    assert centroid(patch) == pytest.approx((40.0, 40.0), abs=0.1)


def test_read_stacks_read_one_also_from_threads_and_for_no_spots() -> None:
    reader = PatchReader(ArrayImage(smooth_image(200, 200)), 0.5, PatchSpec(um=40, px=32))
    xy = np.random.default_rng(0).uniform(-20, 220, (24, 2))
    patches = reader.read(xy)
    assert patches.shape == (24, 32, 32, 3)
    assert patches.dtype == np.uint8
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(patches, list(pool.map(lambda p: reader.read_one(*p), xy)))
    assert reader.read(np.empty((0, 2))).shape == (0, 32, 32, 3)


def test_read_fills_an_array_of_the_callers() -> None:
    reader = PatchReader(ArrayImage(smooth_image(200, 200)), 0.5, PatchSpec(um=40, px=32))
    xy = np.random.default_rng(0).uniform(-20, 220, (5, 2))
    out = np.zeros((5, 32, 32, 3), np.uint8)
    assert reader.read(xy, out=out) is out
    np.testing.assert_array_equal(out, reader.read(xy))
    with pytest.raises(ValueError, match="out must be"):
        reader.read(xy, out=out[:4])


def test_a_tile_that_does_not_decode_names_its_patches_and_spares_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    top = smooth_image(512, 512)
    tifffile.imwrite(path, top, photometric="rgb", tile=(128, 128), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[5], page.databytecounts[5]  # x and y from 128 to 255
    spec = PatchSpec(um=30, px=60)
    xy = np.array([(64.0, 64.0), (190.0, 190.0), (450.0, 450.0), (120.0, 130.0), (64.0, 450.0)])
    with open_image(path) as image:
        whole = PatchReader(image, 0.5, spec).read(xy)
    data = bytearray(path.read_bytes())
    data[offset + 10 : offset + count] = bytes(255 - b for b in data[offset + 10 : offset + count])
    path.write_bytes(data)
    with open_image(path) as image:
        reader = PatchReader(image, 0.5, spec)
        with pytest.raises(UnreadablePatchError, match=r"a\.tif: .*tile 5 of page 0") as caught:
            reader.read(xy)
        assert caught.value.index == 1
        assert "\n" not in str(caught.value)
        for row in (1, 3):
            with pytest.raises(UnreadablePatchError) as caught:
                reader.read_one(*xy[row])
            assert caught.value.index is None
        np.testing.assert_array_equal(reader.read(xy[[0, 2, 4]]), whole[[0, 2, 4]])


def test_the_error_keeps_its_index_between_processes() -> None:
    again = pickle.loads(pickle.dumps(UnreadablePatchError("a.tif: torn", 3)))
    assert (str(again), again.index) == ("a.tif: torn", 3)


@pytest.mark.parametrize(("upsample", "limit", "refused"), [(1.38, None, False), (1.38, 1.4, False), (1.38, 1.3, True),
                                                            (1.0, 1.0, False), (1.0000000001, 1.0, False)])  # fmt: skip
def test_max_upsample(upsample: float, limit: float | None, refused: bool) -> None:
    if not refused:
        check_upsample("s1", upsample, limit)
        return
    with pytest.raises(InputError, match=r"slide s1: .*1\.38×.*--max-upsample allows 1\.3×.*--image"):
        check_upsample("s1", upsample, limit)


@pytest.mark.parametrize("limit", [0.0, 0.5, -1.0, math.nan, math.inf])
def test_max_upsample_without_meaning(limit: float) -> None:
    with pytest.raises(InputError, match="at least 1"):
        check_upsample("s1", 1.0, limit)


def test_defaults_are_the_contracts() -> None:
    spec = PatchSpec()
    assert (spec.um, spec.px, spec.resample, spec.mpp) == (112.0, 224, "bicubic", 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("um", 0.0),
        ("um", -1.0),
        ("um", math.nan),
        ("um", math.inf),
        ("px", 0),
        ("px", 2.5),
        ("resample", "cubic"),
    ],
)
def test_a_patch_without_meaning_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError):
        PatchSpec(**{field: value})


@pytest.mark.parametrize(("mpp", "scale"), [(0.0, 1.0), (math.nan, 1.0), (0.5, 0.0), (0.5, -1.0), (math.inf, 1.0)])
def test_a_frame_without_meaning_is_refused(mpp: float, scale: float) -> None:
    with pytest.raises(InputError, match="positive"):
        PatchReader(ArrayImage(smooth_image(20, 20)), mpp, PatchSpec(), scale=scale)


def test_coordinates_without_meaning_are_refused() -> None:
    reader = PatchReader(ArrayImage(smooth_image(20, 20)), 1.0, PatchSpec(um=10, px=10))
    with pytest.raises(InputError, match="finite"):
        reader.read_one(math.nan, 3.0)
    with pytest.raises(ValueError, match="shape"):
        reader.read(np.zeros((3, 3)))
