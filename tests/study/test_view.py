from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.slides.images import ImageReader, open_image
from spared_fm.study import view, view_image
from spared_fm.study.api import Study
from spared_fm.study.view_image import SlideView, open_slide_image, patch


def picture(path: Path, width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x // 64 + y // 64) % 2 * 200], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_an_image_without_small_levels_is_read_from_an_overview(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 2500, 1700)
    reader = open_image(tmp_path / "a.png")
    shown = view.Frame(2500, 1700, 1.0, (0.0, 0.0), 0.5, "image")
    seen = SlideView("s", shown, None, lambda: reader)
    assert (seen.max_level, seen.min_level, seen.size(11)) == (12, 8, (1250, 850))
    for level in range(seen.min_level, seen.max_level + 1):
        shrink = 2 ** (seen.max_level - level)
        tile = seen.tile(level, 0, 0, overlap=0)
        expected = Image.fromarray(pixels).resize(seen.size(level), Image.Resampling.BOX)
        wanted = np.asarray(expected)[:256, :256].astype(float)
        assert tile.shape == wanted.shape
        assert np.abs(tile - wanted)[..., :2].mean() < 3, shrink
    with pytest.raises(InputError, match="no level 13"):
        seen.tile(13, 0, 0)
    with pytest.raises(InputError, match="no tile 1_0"):
        seen.tile(3, 1, 0)


def test_an_overview_is_made_of_the_image_that_is_open(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 2500, 1700)

    def reader() -> ImageReader:  # as for an image that went from the cache meanwhile
        assert not view_image._decoding.locked(), "opening an image takes this lock"
        return open_image(tmp_path / "a.png")

    seen = SlideView("s", view.Frame(2500, 1700, 1.0, (0.0, 0.0), 0.5, "image"), None, reader)
    assert seen.tile(8, 0, 0).shape == (107, 157, 3)


def test_embeddings_that_go_while_the_store_is_looked_at_are_left_out(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise InputError("no such embeddings")

    monkeypatch.setattr(view, "EmbeddingArray", gone)
    held = view.catalogue(study.layout)
    assert held.embeddings == {slide: {} for slide in study.slides}


def test_a_thumbnail_stands_in_where_there_is_no_image() -> None:
    small = np.zeros((30, 40, 3), np.uint8)
    small[:, 20:] = 200
    seen = SlideView("s", view.Frame(40, 30, 0.1, (0.0, 0.0), 10.0, "thumbnail"), small, None)
    assert seen.tile(seen.max_level, 0, 0).shape == (30, 40, 3)
    cut = patch(seen, 20.0, 15.0, um=100.0, px=20)
    assert cut[:, :8].max() < 60
    assert cut[:, 12:].min() > 140


def test_places_go_to_the_picture_and_back() -> None:
    shown = view.Frame(100, 100, 0.25, (3.0, 4.0), 2.0, "image")
    at = shown.place(np.array([[10.0, 20.0]]))[0].tolist()
    assert at == [10.5 * 0.25 + 3, 20.5 * 0.25 + 4]
    assert shown.coordinates(*at) == (10.0, 20.0)


def test_a_slide_opens_from_the_store(study: Study) -> None:
    seen = open_slide_image(study.layout, study.slides[0])
    assert seen.small is not None  # coarse levels come from the store's own thumbnail
    assert seen.tile(seen.min_level, 0, 0).shape[2] == 3
    with pytest.raises(InputError, match="no slide"):
        open_slide_image(study.layout, "none")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("counts", "counts"),
        ("c_d_log1p", "log2(1 + TPM)"),
        ("ra_lognorm_spread", "ln(1 + counts per 10⁴)"),
        ("noisy_c_d_deltas", "log2(1 + TPM) − gene's mean"),
        ("mine", None),
    ],
)
def test_units_follow_names(layer: str, expected: str | None) -> None:
    assert view.unit(layer) == expected
