from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.study.api import Study
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"


def spot_of(study: Study, row: int = 5, slide: str = SLIDE) -> str:
    return f"{slide}/{study.slide(slide).obs_names[row]}"


def test_neighbours_are_those_of_brute_force(study: Study):
    query = spot_of(study)
    found = study.search(ENCODER, spots=[query], k=8)
    names, vectors = [], []
    for slide in study.slides:
        adata = study.slide(slide)
        names += [f"{slide}/{name}" for name in adata.obs_names]
        vectors.append(adata.obsm[ENCODER].astype(np.float64))
    unit = np.concatenate(vectors)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit[names.index(query)]
    similarity[names.index(query)] = -np.inf
    order = np.argsort(-similarity, kind="stable")[:8]
    assert list(found["spot"]) == [names[i] for i in order]
    np.testing.assert_allclose(found["similarity"], similarity[order], atol=1e-5)
    assert list(found["rank"]) == list(range(1, 9))
    assert list(found.columns) == ["query", "rank", "spot", "slide", "similarity"]


def test_leaving_out_the_own_slide_or_patient(study: Study):
    query = spot_of(study)
    assert set(study.search(ENCODER, spots=[query], k=500)["slide"]) == set(study.slides)
    assert set(study.search(ENCODER, spots=[query], k=500, exclude="slide")["slide"]) == set(study.slides) - {SLIDE}
    by_patient = study.search(ENCODER, spots=[query], k=500, exclude="patient")
    assert set(by_patient["slide"]) == {"synthetic_p2_s3"}
    assert len(by_patient) == study.slide("synthetic_p2_s3").n_obs


def test_several_queries(study: Study):
    queries = [spot_of(study, 3), spot_of(study, 9)]
    found = study.search(ENCODER, spots=queries, k=4)
    assert list(found["query"]) == [queries[0]] * 4 + [queries[1]] * 4
    assert not (found["query"] == found["spot"]).any()


def test_an_image_finds_the_spot_it_was_cut_from(study: Study, tmp_path: Path):
    record = study.layout.attributes(study.layout.slide(SLIDE))
    assert record is not None
    xy = study.slide(SLIDE).obsm["spatial"][7]
    with open_image(record["image"]["path"]) as image:
        Image.fromarray(PatchReader(image, record["mpp"], PatchSpec()).read_one(*xy)).save(tmp_path / "patch.png")
        x, y = (round(v) for v in xy)
        Image.fromarray(image.read(0, x - 120, y - 120, 241, 241)).save(tmp_path / "region.png")
    whole = study.search(ENCODER, images=[tmp_path / "patch.png"], k=1).iloc[0]
    assert whole["spot"] == spot_of(study, 7)
    assert whole["similarity"] > 0.999
    region = study.search(ENCODER, images=[tmp_path / "region.png"], mpp=record["mpp"], k=1).iloc[0]
    assert region["spot"] == spot_of(study, 7)


def test_bad_queries(study: Study, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no")
    Image.new("RGB", (50, 50)).save(tmp_path / "small.png")
    spot = spot_of(study)
    for options, message in (
        ({}, "nothing to search for"),
        ({"spots": ["nope/x"]}, "no slide 'nope'"),
        ({"spots": [f"{SLIDE}/nope"]}, "no spot 'nope'"),
        ({"spots": [spot], "k": 0}, "k is 0"),
        ({"spots": [spot], "exclude": "moon"}, "moon"),
        ({"images": [tmp_path / "broken.png"]}, r"broken\.png"),
        ({"images": [tmp_path / "small.png"], "mpp": 0.5}, r"small\.png.*smaller than a patch"),
        ({"images": [tmp_path / "small.png"], "exclude": "slide"}, "needs a query spot"),
    ):
        with pytest.raises(InputError, match=message):
            study.search(ENCODER, **options)
    with pytest.raises(InputError, match="uni"):
        study.search("uni", spots=[spot])
