from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from anndata.io import write_elem
from fastapi.testclient import TestClient
from PIL import Image

import spared_fm
from spared_fm.explore.app import create_app
from spared_fm.store.nodes import zarr_v3
from spared_fm.study.api import Study
from tests.explore.conftest import ENCODER, HOST


def get(client: TestClient, path: str, **params: Any) -> Any:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def table(answer: Any) -> pa.Table:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/vnd.apache.arrow.stream")
    return pa.ipc.open_stream(answer.content).read_all()


def search(client: TestClient, **body: Any) -> Any:
    answer = client.post("/api/search", json={"encoder": ENCODER, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_slides_are_listed_and_described(client: TestClient, shown: Study) -> None:
    listed = get(client, "/api/slides")["slides"]
    assert [row["slide"] for row in listed] == shown.slides
    first = get(client, f"/api/slides/{shown.slides[0]}")
    adata = shown.slide(shown.slides[0])
    assert (first["spots"], first["genes"], first["cohorts"]) == (adata.n_obs, adata.n_vars, ["c"])
    assert {row["name"] for row in first["obs"]} == set(adata.obs.columns)
    assert first["encoders"] == [{"key": ENCODER, "dim": 560}]
    kinds = {row["layer"]: row["kind"] for row in first["layers"]}
    assert (kinds["counts"], kinds["cohort:c/lognorm"]) == ("measured", "measured")
    assert {"completed", "predicted"} <= set(kinds.values())
    assert all(row["unit"] or row["kind"] == "predicted" for row in first["layers"])


def test_spots_lie_in_the_picture(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    found, about = get(client, f"/api/slides/{slide}/spots"), get(client, f"/api/slides/{slide}")
    adata = shown.slide(slide)
    assert found["ids"] == list(adata.obs_names)
    # coordinates name centres of pixels, the picture is measured from its corner
    np.testing.assert_allclose(np.stack([found["x"], found["y"]], 1), adata.obsm["spatial"] + 0.5)
    assert 0 < max(found["x"]) < about["width"]
    columns = table(client.get(f"/api/slides/{slide}/spots?format=arrow"))
    assert columns.column("spot").to_pylist() == found["ids"]
    assert columns.column("y").to_pylist() == found["y"]


@pytest.mark.parametrize("layer", ["counts", "cohort:c/lognorm"])
def test_a_gene_colours_spots_as_it_was_measured(client: TestClient, shown: Study, layer: str) -> None:
    slide = shown.slides[1]
    cohort = shown.cohort_data("c")
    gene = str(cohort.var_names[3])
    found = get(client, f"/api/slides/{slide}/values", what=f"gene:{gene}", layer=layer)
    adata = shown.slide(slide)
    if layer == "counts":
        expected = adata.obs_vector(gene).astype(float).tolist()
    else:
        rows = cohort.obs["slide"] == slide
        known = dict(zip(cohort.obs["barcode"][rows], cohort[rows, gene].layers["lognorm"][:, 0].tolist(), strict=True))
        expected = [known.get(name) for name in adata.obs_names]
    assert found["values"] == expected
    assert (found["kind"], found["min"], found["diverging"]) == (
        "number",
        min(v for v in expected if v is not None),
        False,
    )


def test_the_difference_of_two_layers_diverges_from_zero(client: TestClient, shown: Study) -> None:
    slide, gene = shown.slides[0], str(shown.cohort_data("c").var_names[0])
    layers = [row["layer"] for row in get(client, f"/api/slides/{slide}")["layers"] if row["kind"] == "completed"]
    ask = {"what": f"gene:{gene}", "layer": layers[0]}
    parts = [
        get(client, f"/api/slides/{slide}/values", **(ask | more))["values"]
        for more in ({}, {"layer": "cohort:c/lognorm"})
    ]
    found = get(client, f"/api/slides/{slide}/values", **ask, minus="cohort:c/lognorm")
    assert found["diverging"]
    assert found["values"] == [None if None in pair else pair[0] - pair[1] for pair in zip(*parts, strict=True)]
    wrong = client.get(f"/api/slides/{slide}/values", params={**ask, "minus": "counts"})
    assert wrong.status_code == 422
    assert "same unit" in wrong.json()["error"]


def test_a_head_predicts_a_layer(client: TestClient, shown: Study) -> None:
    slide, run = shown.slides[2], shown.layout.files.list("heads/c")[0]
    predicted = shown.predict("c", run, slides=[slide])[slide]
    found = get(client, f"/api/slides/{slide}/values", what=f"gene:{predicted.var_names[1]}", layer=f"head:c/{run}")
    np.testing.assert_allclose(found["values"], predicted.X[:, 1], rtol=1e-6)
    assert found["unit"] == "ln(1 + counts per 10⁴)"


def test_obs_columns_clusters_and_directions_colour_spots(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    n = shown.slide(slide).n_obs
    obs = get(client, f"/api/slides/{slide}/values", what="obs:array_row")
    assert (obs["kind"], len(obs["values"])) == ("number", n)
    clusters = get(client, f"/api/slides/{slide}/values", what=f"cluster:{ENCODER}", k=3)
    assert clusters["categories"] == ["cluster 1", "cluster 2", "cluster 3"]
    assert len(clusters["values"]) == n
    rgb = get(client, f"/api/slides/{slide}/values", what=f"pca:{ENCODER}")
    colours = np.array(rgb["values"])
    assert colours.shape == (n, 3)
    assert colours.min() < 20
    assert colours.max() > 235
    as_arrow = table(client.get(f"/api/slides/{slide}/values", params={"what": f"pca:{ENCODER}", "format": "arrow"}))
    assert as_arrow.column("value").to_pylist() == rgb["values"]
    named = table(
        client.get(f"/api/slides/{slide}/values", params={"what": f"cluster:{ENCODER}", "k": 3, "format": "arrow"})
    )
    assert named.column("value").to_pylist() == [clusters["categories"][code] for code in clusters["values"]]


def test_genes_are_found_by_prefix(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    names = list(shown.slide(slide).var_names)
    found = get(client, "/api/genes", slide=slide, prefix=names[7].lower(), limit=1)
    assert found["genes"] == [names[7]]
    assert get(client, "/api/genes", slide=slide, limit=1000)["total"] == len(names)
    assert set(get(client, "/api/genes", slide=slide, layer="cohort:c/lognorm")["genes"]) == set(
        shown.cohort_data("c").var_names
    )


def test_features_are_those_of_the_store(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    expected = shown.features(slide, ENCODER)
    whole = table(client.get("/api/features", params={"encoder": ENCODER, "slide": slide}))
    got = np.stack(whole.column("vector").to_numpy())
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    assert whole.schema.metadata[b"slide"] == slide.encode()
    ids = whole.column("spot").to_pylist()
    some = table(client.get("/api/features", params={"encoder": ENCODER, "slide": slide, "spots": [ids[4], ids[1]]}))
    assert some.column("spot").to_pylist() == [ids[4], ids[1]]
    np.testing.assert_array_equal(np.stack(some.column("vector").to_numpy()), expected[[4, 1]])


def test_a_gene_of_a_cohort_is_found_by_its_symbol(shown: Study, tmp_path: Path) -> None:
    study = spared_fm.open(shutil.copytree(shown.layout.root, tmp_path / "store"))
    cohort, slide, layer = study.cohort_data("c"), study.slides[0], "cohort:c/lognorm"
    ids = list(cohort.var_names)
    var = cohort.var.assign(gene_symbol=["ABC1", "", "TWIN", "TWIN", ids[0], *(f"S{i}" for i in range(5, len(ids)))])
    with zarr_v3():
        write_elem(zarr.open_group(study.layout.root / study.layout.cohort("c")), "var", var)
    client = TestClient(create_app(study.layout.root), base_url=HOST)
    listed = get(client, "/api/genes", slide=slide, layer=layer)["genes"]
    assert {"ABC1", "S5", *ids[1:5]} <= set(listed)  # no symbol, one that two genes have, one that is another's id
    assert not {"TWIN", "", ids[0]} & set(listed)

    def shows(gene: str, layer: str = layer) -> list[float | None]:
        return get(client, f"/api/slides/{slide}/values", what=f"gene:{gene}", layer=layer)["values"]

    assert shows("ABC1") == shows(ids[0])
    assert shows("S5") == shows(ids[5]) != shows("ABC1")
    [run] = study.layout.files.list("heads/c")
    assert shows("S5", f"head:c/{run}") == shows(ids[5], f"head:c/{run}")
    spot = f"{slide}/{get(client, f'/api/slides/{slide}/spots')['ids'][0]}"
    body = {"encoder": ENCODER, "spots": [spot], "k": 1, "genes": ["ABC1", ids[5]], "layer": layer}
    [found] = client.post("/api/search", json=body).json()["results"]
    assert set(found["expression"]) == {"ABC1", ids[5]}
    assert client.post("/api/search", json=body | {"genes": ["TWIN"]}).status_code == 422
    ask = {"cohort": "c", "layer": "lognorm", "slide": slide, "genes": "S5"}
    rows = (cohort.obs["slide"] == slide).to_numpy()
    np.testing.assert_array_equal(
        np.stack(table(client.get("/api/targets", params=ask)).column("value").to_numpy())[:, 0],
        cohort[rows, ids[5]].layers["lognorm"][:, 0],
    )


def test_a_completion_says_how_sure_it_is(client: TestClient, shown: Study) -> None:
    slide, layer = shown.slides[0], "lr_lognorm"
    cohort = shown.cohort_data("c")
    rows = (cohort.obs["slide"] == slide).to_numpy()
    spread = cohort.layers[f"{layer}_spread"][rows]
    found = table(client.get("/api/targets", params={"cohort": "c", "layer": layer, "slide": slide}))
    np.testing.assert_array_equal(np.stack(found.column("uncertainty").to_numpy()), spread)
    own = next(row for row in get(client, f"/api/slides/{slide}")["layers"] if row["layer"] == f"cohort:c/{layer}")
    assert own["uncertainty"] == f"cohort:c/{layer}_spread"
    gene = cohort.var_names[int(spread.max(axis=0).argmax())]
    shows = get(client, f"/api/slides/{slide}/values", what=f"gene:{gene}", layer=own["uncertainty"])
    known = dict(zip(cohort.obs["barcode"][rows], cohort[rows, gene].layers[f"{layer}_spread"][:, 0], strict=True))
    spots = get(client, f"/api/slides/{slide}/spots")["ids"]
    assert [v for v in shows["values"] if v] == pytest.approx([known[b] for b in spots if known.get(b)])
    assert max(known.values()) > 0


def test_targets_are_those_of_the_cohort(client: TestClient, shown: Study) -> None:
    slide, cohort = shown.slides[1], shown.cohort_data("c")
    found = table(client.get("/api/targets", params={"cohort": "c", "layer": "lognorm", "slide": slide}))
    rows = (cohort.obs["slide"] == slide).to_numpy()
    assert json.loads(found.schema.metadata[b"genes"]) == list(cohort.var_names)
    np.testing.assert_array_equal(np.stack(found.column("value").to_numpy()), cohort.layers["lognorm"][rows])
    np.testing.assert_array_equal(
        np.stack(found.column("mask").to_numpy(zero_copy_only=False)), cohort.layers["mask"][rows]
    )
    gene = str(cohort.var_names[2])
    one = table(client.get("/api/targets", params={"cohort": "c", "layer": "lognorm", "slide": slide, "genes": gene}))
    np.testing.assert_array_equal(
        np.stack(one.column("value").to_numpy())[:, 0], cohort[rows, gene].layers["lognorm"][:, 0]
    )


def test_a_search_gives_what_the_study_gives(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    spot = f"{slide}/{shown.slide(slide).obs_names[5]}"
    gene = str(shown.slide(slide).var_names[0])
    asks: list[dict[str, Any]] = [
        {"k": 5},
        {"k": 5, "exclude": "slide"},
        {"k": 3, "exclude": "patient", "columns": ["array_row"]},
        {"k": 2, "one_per_slide": True},
        {"k": 4, "where": {"slide": shown.slides[1:]}},
        {"k": 4, "where": {"array_row": ["2", "3"]}, "cohort": "c"},
        {"k": 4, "genes": [gene]},
    ]
    for ask in asks:
        expected = shown.search(ENCODER, spots=[spot], **ask)
        found = search(client, spots=[spot], **ask)
        assert [row["spot"] for row in found["results"]] == list(expected["spot"]), ask
        np.testing.assert_array_equal([row["similarity"] for row in found["results"]], expected["similarity"])
        for column in ask.get("columns", ()):
            assert [row[column] for row in found["results"]] == expected[column].tolist()
        if "genes" in ask:
            assert [row["expression"][gene] for row in found["results"]] == expected[f"counts:{gene}"].tolist()
    assert (found["made_from"], found["query_spots"], found["metric"]) == ("spots", [spot], "cosine")
    named = search(client, spots=[spot], k=4, slides=shown.slides[1:])["results"]
    assert named == search(client, spots=[spot], k=4, where={"slide": shown.slides[1:]})["results"]


def test_a_region_is_searched_for_by_its_spots(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    spots = get(client, f"/api/slides/{slide}/spots")
    mpp = spots["mpp"]
    left, top = spots["x"][0] * mpp - 1, spots["y"][0] * mpp - 1
    found = search(
        client, region={"slide": slide, "x": left, "y": top, "width": 250, "height": 200}, k=3, exclude="slide"
    )
    inside = [
        f"{slide}/{name}"
        for name, x, y in zip(spots["ids"], spots["x"], spots["y"], strict=True)
        if left <= x * mpp <= left + 250 and top <= y * mpp <= top + 200
    ]
    assert found["made_from"] == "region spots"
    assert found["query_spots"] == inside
    expected = shown.search(ENCODER, spots=inside, combine="mean", k=3, exclude="slide")
    assert [row["spot"] for row in found["results"]] == list(expected["spot"])


def test_a_region_without_spots_is_encoded(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    found = search(client, region={"slide": slide, "x": 1, "y": 1, "width": 20, "height": 20}, k=1)
    assert found["made_from"] == "region pixels"
    spots = get(client, f"/api/slides/{slide}/spots")
    huge = client.post(
        "/api/search",
        json={"encoder": ENCODER, "region": {"slide": slide, "x": -9000, "y": 0, "width": 5000, "height": 10}},
    )
    assert (huge.status_code, "2000 µm" in huge.json()["error"]) == (422, True), spots["mpp"]


def test_a_vector_finds_its_own_spot(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    vector = shown.features(slide, ENCODER)[7].astype(float).tolist()
    found = search(client, vector=vector, k=1)["results"][0]
    assert found["spot"] == f"{slide}/{shown.slide(slide).obs_names[7]}"
    assert found["similarity"] == pytest.approx(1)


def test_results_as_arrow_are_the_same(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    body = {"encoder": ENCODER, "spots": [f"{slide}/{shown.slide(slide).obs_names[0]}"], "k": 3}
    rows = table(client.post("/api/search", json=body, headers={"accept": "application/vnd.apache.arrow.stream"}))
    assert rows.to_pylist() == search(client, **body)["results"]


def test_a_crop_that_is_sent_finds_where_it_was_cut(client: TestClient, shown: Study) -> None:
    slide = shown.slides[0]
    barcode = shown.slide(slide).obs_names[9]
    crop = client.get(f"/api/slides/{slide}/patch", params={"spot": barcode, "um": 112, "px": 224})
    png = io.BytesIO()
    Image.open(io.BytesIO(crop.content)).save(png, "PNG")
    for name, data in (("a.jpg", crop.content), ("../../x.png", png.getvalue())):
        answer = client.post("/api/search/upload", files={"image": (name, data)}, data={"encoder": ENCODER, "k": "1"})
        assert answer.json()["results"][0]["spot"] == f"{slide}/{barcode}", answer.text


def test_cohorts_and_encoders_are_listed(client: TestClient, shown: Study) -> None:
    [cohort] = get(client, "/api/cohorts")["cohorts"]
    assert (cohort["cohort"], set(cohort["slides"]), cohort["genes"]) == ("c", set(shown.slides), 12)
    [encoder] = get(client, "/api/encoders")["encoders"]
    assert (encoder["key"], encoder["dim"], encoder["slides"], encoder["encodes"]) == (ENCODER, 560, shown.slides, True)


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/api/slides/none", {}),
        ("/api/slides/{slide}/values", {"what": "gene:none"}),
        ("/api/slides/{slide}/values", {"what": "gene:x", "layer": "cohort:c/none"}),
        ("/api/slides/{slide}/values", {"what": "obs:none"}),
        ("/api/slides/{slide}/values", {"what": "pca:none"}),
        ("/api/slides/{slide}/patch", {"spot": "none"}),
        ("/api/genes", {"slide": "none"}),
        ("/api/features", {"encoder": "none", "slide": "{slide}"}),
        ("/api/targets", {"cohort": "c", "layer": "none", "slide": "{slide}"}),
        ("/api/none", {}),
    ],
)
def test_what_is_not_there_is_404_in_one_line(
    client: TestClient, shown: Study, path: str, params: dict[str, str]
) -> None:
    slide = shown.slides[0]
    answer = client.get(path.format(slide=slide), params={k: v.format(slide=slide) for k, v in params.items()})
    assert answer.status_code == 404, answer.text
    assert list(answer.json()) == ["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"spots": ["x/y"], "vector": [1.0]},
        {"vector": [1.0, 2.0]},
        {"vector": [1.0] * 560, "exclude": "slide"},
        {"vector": [1.0] * 560, "where": {"none": ["1"]}},
        {"vector": [1.0] * 560, "columns": ["none"]},
        {"vector": [1.0] * 560, "genes": ["none"]},
        {"vector": [1.0] * 560, "k": 0},
        {"vector": [1.0] * 560, "unknown": 1},
        {"vector": [1.0] * 560, "slides": []},
    ],
)
def test_a_search_that_has_no_meaning_is_422_in_one_line(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/api/search", json={"encoder": ENCODER, **body})
    assert answer.status_code == 422, answer.text
    assert list(answer.json()) == ["error"]


def test_a_column_named_like_a_place_leaves_the_place_alone(
    client: TestClient, shown: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = f"{shown.slides[0]}/{shown.slide(shown.slides[0]).obs_names[0]}"
    plain = search(client, spots=[spot], k=3)["results"]
    monkeypatch.setattr("spared_fm.study.view_search.obs_values", lambda _, spots, *rest: [{"x": -7.0}] * len(spots))
    found = search(client, spots=[spot], k=3, columns=["x"])["results"]
    assert found == [{**row, "obs:x": -7.0} for row in plain]


def test_a_region_of_many_spots_is_not_searched_one_by_one(
    client: TestClient, shown: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spared_fm.study.view_search.MOST_ANY", 3)
    region = {"slide": shown.slides[0], "x": 0, "y": 0, "width": 1e5, "height": 1e5}
    answer = client.post("/api/search", json={"encoder": ENCODER, "region": region, "combine": "any"})
    assert answer.status_code == 422
    assert search(client, region=region, k=1)["made_from"] == "region spots"


@pytest.mark.parametrize("path", ["", "/values?what=pca:stain-bank", "/values?what=gene:x"])
def test_a_slide_that_goes_while_it_is_asked_for_is_told_in_words(
    shown: Study, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    from spared_fm.explore.desk import Desk

    client = TestClient(create_app(shown.layout.root), base_url="http://localhost", raise_server_exceptions=False)
    before = client.app.state.desk.held()  # type: ignore[attr-defined]
    after = dataclasses.replace(before, slides={}, embeddings={}, cohorts={})
    for looks in range(1, 5):
        held = iter([before] * looks)
        monkeypatch.setattr(Desk, "held", lambda _, held=held: next(held, after))
        assert client.get(f"/api/slides/{shown.slides[0]}{path}").status_code in (200, 404, 409), looks


def test_what_changes_in_the_store_is_seen(shown: Study, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    import spared_fm
    from spared_fm.explore import desk
    from spared_fm.explore.app import create_app

    monkeypatch.setattr(desk, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(desk, "LOOK_SHARE", 0)
    study = spared_fm.open(shutil.copytree(shown.layout.root, tmp_path / "store"))
    client = TestClient(create_app(study.layout.root), base_url="http://localhost")
    spot = f"{study.slides[0]}/{study.slide(study.slides[0]).obs_names[0]}"
    before = search(client, spots=[spot], k=200)["results"]
    study.rm(slides=study.slides[1], force=True)
    assert [row["slide"] for row in get(client, "/api/slides")["slides"]] == study.slides
    after = search(client, spots=[spot], k=200)["results"]
    assert {row["spot"] for row in after} == {row["spot"] for row in before if row["slide"] in study.slides}
    assert len(after) < len(before)
