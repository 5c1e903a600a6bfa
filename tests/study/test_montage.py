from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.extract.source import patch_source
from spared_fm.slides.patches import PatchSpec
from spared_fm.study import montage as montages
from spared_fm.study.api import Study
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"
SIDE, GAP = montages.SIDE, montages._GAP


def spot_of(study: Study, row: int = 5) -> str:
    return f"{SLIDE}/{study.slide(SLIDE).obs_names[row]}"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as page:
        return np.asarray(page)


def cell(page: np.ndarray, column: int, row: int) -> np.ndarray:
    """Pixels of a patch, without its scale bar, and of the text below it."""
    left = GAP + column * (SIDE + GAP) + (GAP if column else 0)
    top = GAP + row * ((page.shape[0] - GAP) // max(1, round((page.shape[0] - GAP) / (SIDE + 92))))
    return page[top : top + SIDE + 80, left : left + SIDE]


def test_patches_are_those_of_the_slides(study: Study, tmp_path: Path):
    path = tmp_path / "m.png"
    hits = study.search(ENCODER, spots=[spot_of(study)], k=3, montage=path)
    page = pixels(path)
    assert page.shape == (2 * GAP + SIDE + 4 * 19, 4 * (SIDE + GAP) + 2 * GAP, 3)
    for column, spot in enumerate([spot_of(study), *hits["spot"]]):
        slide, _, barcode = spot.partition("/")
        row = int(study.slide(slide).obs_names.get_loc(barcode))
        reader, places = patch_source(study.layout, slide, PatchSpec(112, SIDE), range(row, row + 1))
        drawn = cell(page, column, 0)
        np.testing.assert_array_equal(drawn[: SIDE - 40], reader.read(places)[0][: SIDE - 40])
        for line in range(4):  # something is written on each
            assert (drawn[SIDE + 4 + line * 19 : SIDE + 4 + line * 19 + 14].min(axis=2) < 100).any()


def test_what_has_no_image_is_an_empty_square(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    node = study.layout.slide(SLIDE)
    gone = {"path": str(tmp_path / "gone.tif")}
    study.layout.update_attributes(node, lambda record: {**record, "image": {**record["image"], **gone}})
    study.search(ENCODER, spots=[spot_of(study)], slides=SLIDE, k=7, montage=tmp_path / "m.png")
    page = pixels(tmp_path / "m.png")
    for column, row in ((0, 0), (1, 0), (5, 0), (1, 1), (2, 1)):
        assert (cell(page, column, row)[0, 0] == 217).all()
    assert (cell(page, 3, 1) == 255).all()


def test_texts_fit():
    font = montages._font(14)
    assert montages._fitted("short", font, SIDE) == "short"
    cut = montages._fitted("a-very-long-slide-name-that-goes-on-and-on_section_17", font, SIDE)
    assert font.getlength(cut) <= SIDE
    assert cut.startswith("a-very")
    assert cut.endswith("_17")
    assert font.getmask("µ").getbbox() != font.getmask("\ufffe").getbbox()  # not the box of a missing letter


def test_pages_that_can_not_be(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(montages, "MOST", 3)
    for path, k, message in (
        (tmp_path / "m.jpg", 3, "is a PNG"),
        (tmp_path / "none" / "m.png", 3, "can't be written"),
        (tmp_path / "m.png", 4, "4 results can't be read; ask for 3"),
    ):
        with pytest.raises(InputError, match=message):
            study.search(ENCODER, spots=[spot_of(study)], k=k, montage=path)
