from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spared_fm.slides import resample
from spared_fm.slides.resample import prepare, resize


@pytest.fixture(scope="module")
def kernel():
    pytest.importorskip("numba")
    from spared_fm.slides.resample_kernel import bicubic

    return bicubic


def by_pillow(source: np.ndarray, left: float, top: float, side: float, n: int) -> np.ndarray:
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(source).resize((n, n), Image.Resampling.BICUBIC, box=box))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 300), height=st.integers(1, 300), n=st.integers(1, 260), share=st.floats(0.01, 1.0),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 5),
)  # fmt: skip
def test_the_compiled_filter_gives_pillows_pixels(kernel, width, height, n, share, at, seed) -> None:
    height, width = sorted((height, width))
    source = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed == 0:
        source = np.where(source > 127, 255, 0).astype(np.uint8)  # the sharpest edges: overshoot is clipped
    side = share * min(width, height)
    left, top = at[0] * (width - side) * 0.999, at[1] * (height - side) * 0.999
    found = np.empty((n, n, 3), np.uint8)
    kernel(source, left, top, side, found)
    np.testing.assert_array_equal(found, by_pillow(source, left, top, side, n))


def test_it_reads_views_and_read_only_arrays(kernel) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    whole.flags.writeable = False
    view = whole[10:70:2, 100:20:-1]
    found = np.empty((24, 24, 3), np.uint8)
    kernel(view, 1.5, 2.25, 25.0, found)
    np.testing.assert_array_equal(found, by_pillow(np.ascontiguousarray(view), 1.5, 2.25, 25.0, 24))


def test_a_source_higher_than_wide_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_kernel", lambda *_: pytest.fail("the kernel was asked"))
    source = np.random.default_rng(1).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    found = np.empty((32, 32, 3), np.uint8)
    resize(source, 3.3, 4.4, 40.0, found, "bicubic")
    np.testing.assert_array_equal(found, by_pillow(source, 3.3, 4.4, 40.0, 32))


def test_prepare_changes_the_way_and_not_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    source = np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    before, after = np.empty((2, 32, 32, 3), np.uint8)
    monkeypatch.setattr(resample, "_kernel", None)
    resize(source, 3.3, 4.4, 50.0, before, "bicubic")
    assert prepare()
    monkeypatch.setattr(resample, "_by_pillow", lambda *_: pytest.fail("Pillow was asked"))
    resize(source, 3.3, 4.4, 50.0, after, "bicubic")
    np.testing.assert_array_equal(before, after)


def test_a_kernel_that_gives_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from spared_fm.slides import resample_kernel

    monkeypatch.setattr(resample, "_kernel", None)
    monkeypatch.setattr(resample, "_failed", False)
    right = resample_kernel.bicubic

    def wrong(source: np.ndarray, left: float, top: float, side: float, out: np.ndarray) -> None:
        right(source, left, top, side, out)
        out[3, 4, 1] ^= 1

    monkeypatch.setattr(resample_kernel, "bicubic", wrong)
    assert not prepare()


def test_without_numba_pillow_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_kernel", None)
    monkeypatch.setattr(resample, "_failed", False)
    monkeypatch.setitem(sys.modules, "spared_fm.slides.resample_kernel", None)  # importing it fails
    assert not prepare()
    out = np.empty((8, 8, 3), np.uint8)
    resize(np.full((20, 20, 3), 9, np.uint8), 0.0, 0.0, 16.0, out, "bicubic")
    assert (out == 9).all()
