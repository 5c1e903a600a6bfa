from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from spared_fm.study.api import Study


def pixels(client: TestClient, path: str) -> np.ndarray:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)


def test_tiles_of_full_size_are_the_image(client: TestClient, shown: Study, synthetic_slides: object) -> None:
    slide = shown.slides[0]
    record = shown.layout.attributes(shown.layout.slide(slide))
    assert record is not None
    image = np.asarray(Image.open(record["image"]["path"]).convert("RGB")).astype(float)
    about = client.get(f"/api/slides/{slide}/dzi").json()
    assert (about["width"], about["height"]) == image.shape[1::-1]
    top = about["max_level"]
    assert 2 ** (top - 1) < max(image.shape[:2]) <= 2**top
    corner = pixels(client, f"/api/slides/{slide}/tiles/{top}/0_0.jpg")
    assert corner.shape == (257, 257, 3)  # one pixel of each neighbour
    assert np.abs(corner - image[:257, :257]).mean() < 4
    inner = pixels(client, f"/api/slides/{slide}/tiles/{top}/1_1.jpg")
    assert inner.shape == (258, 258, 3)
    assert np.abs(inner - image[255:513, 255:513]).mean() < 4


def test_coarse_tiles_show_the_same_place(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    record = shown.layout.attributes(shown.layout.slide(slide))
    assert record is not None
    about = client.get(f"/api/slides/{slide}/dzi").json()
    image = Image.open(record["image"]["path"]).convert("RGB")
    for level in (about["min_level"], about["max_level"] - 1):
        shrink = 2 ** (about["max_level"] - level)
        small = np.asarray(
            image.resize((-(-about["width"] // shrink), -(-about["height"] // shrink)), Image.Resampling.BOX)
        )
        tile = pixels(client, f"/api/slides/{slide}/tiles/{level}/0_0.jpg")
        expected = small[:257, :257].astype(float)
        assert tile.shape == expected.shape
        assert np.abs(tile - expected).mean() < 8


@pytest.mark.parametrize("tile", ["99/0_0", "-1/0_0", "0/1_0", "8/0_-1", "8/900_0"])
def test_a_tile_outside_is_404(client: TestClient, shown: Study, tile: str) -> None:
    assert client.get(f"/api/slides/{shown.slides[0]}/tiles/{tile}.jpg").status_code == 404


def test_a_tile_is_kept_by_its_mark(client: TestClient, shown: Study) -> None:
    path = f"/api/slides/{shown.slides[0]}/tiles/8/0_0.jpg"
    mark = client.get(path).headers["etag"]
    again = client.get(path, headers={"if-none-match": mark})
    assert (again.status_code, again.content) == (304, b"")


def test_a_patch_is_what_an_encoder_sees(client: TestClient, shown: Study) -> None:
    from spared_fm.extract.source import patch_source
    from spared_fm.slides.patches import PatchSpec

    slide = shown.slides[0]
    reader, places = patch_source(shown.layout, slide, PatchSpec(112, 224), range(3, 4))
    expected = reader.read(places)[0].astype(float)
    barcode = shown.slide(slide).obs_names[3]
    found = pixels(client, f"/api/slides/{slide}/patch?spot={barcode}&um=112&px=224")
    assert np.abs(found - expected).mean() < 5
    spots = client.get(f"/api/slides/{slide}/spots").json()
    there = pixels(client, f"/api/slides/{slide}/patch?x={spots['x'][3]}&y={spots['y'][3]}&um=112&px=224")
    np.testing.assert_array_equal(found, there)


def test_a_thumbnail_is_as_small_as_asked(client: TestClient, shown: Study) -> None:
    assert max(pixels(client, f"/api/slides/{shown.slides[0]}/thumbnail.jpg?px=100").shape) == 100
