"""The whole path on an object store gives what it gives in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.study.api import Study
from tests.object_stores import place
from tests.study.conftest import ENCODER, ingest_all

QUERY = "synthetic_p1_s1"


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_ingest_to_search(kind: str, study: Study, synthetic_slides: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SPARED_FM_CACHE", str(tmp_path / "cache"))
    url = f"{place(kind, tmp_path)}/store"
    remote = spared_fm.open(url, create=True)
    ingest_all(remote, synthetic_slides)
    remote.encode(ENCODER, chunk_rows=16, threads=1)
    [again] = spared_fm.open(url).encode(ENCODER)
    assert again["patches"] == 0
    remote.cohort("c", n_genes=12)
    remote.complete("c")

    assert remote.slides == study.slides
    for slide in study.slides:
        expected = study.features(slide, ENCODER)
        found = remote.features(slide, ENCODER)
        assert found.tobytes() == expected.tobytes()
        assert remote.slide(slide).obsm[ENCODER].tobytes() == expected.tobytes()
    local, cohort = study.cohort_data("c"), remote.cohort_data("c")
    assert set(cohort.layers) == set(local.layers)
    for layer in local.layers:
        np.testing.assert_array_equal(cohort.layers[layer], local.layers[layer])

    options = {"encoders": [ENCODER], "targets": ["lognorm", "d_lognorm"]}
    pd.testing.assert_frame_equal(remote.benchmark("c", **options), study.benchmark("c", **options))
    spot = f"{QUERY}/{study.slide(QUERY).obs_names[3]}"
    pd.testing.assert_frame_equal(
        remote.search(ENCODER, spots=[spot], exclude="slide"), study.search(ENCODER, spots=[spot], exclude="slide")
    )

    fitted = remote.fit("c", encoder=ENCODER)
    assert fitted["path"] == f"{url}/heads/c/{fitted['run']}"
    predicted = remote.predict("c", fitted["run"], slides=QUERY)[QUERY]
    assert np.isfinite(predicted.X).all()
    with pytest.raises(InputError, match=f"{url}/heads/c/{fitted['run']} exists already"):
        remote.fit("c", encoder=ENCODER)
    with pytest.raises(InputError, match=f"{url}/heads/c/none is not a saved head"):
        remote.predict("c", "none")
    info = remote.info()
    assert info["store"] == url
    assert info["cohorts"][0]["heads"] == [fitted["run"]]
