from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import spared_fm
from spared_fm.encoders import registry
from spared_fm.errors import InputError
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.study import index_table
from spared_fm.study import search as searches
from spared_fm.study.api import Study
from spared_fm.study.index_table import Kept, Rows, ids_of
from spared_fm.study.queries import Query
from spared_fm.study.search import COLUMNS
from spared_fm.study.search_engine import best_per_slide
from tests.study.conftest import ENCODER

SLIDE = "synthetic_p1_s1"


def spot_of(study: Study, row: int = 5, slide: str = SLIDE) -> str:
    return f"{slide}/{study.slide(slide).obs_names[row]}"


@pytest.fixture(scope="module")
def rows(encoded: Path) -> tuple[list[str], np.ndarray]:
    """Names and embeddings (n, dim) of all spots, in float64."""
    study = spared_fm.open(encoded)
    slides = {slide: study.slide(slide) for slide in study.slides}
    names = [f"{slide}/{name}" for slide, adata in slides.items() for name in adata.obs_names]
    return names, np.concatenate([adata.obsm[ENCODER].astype(np.float64) for adata in slides.values()])


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Vectors as a built-in encoder's are compared by default."""
    scale = vectors.std(axis=0)
    return (vectors - vectors.mean(axis=0)) / np.where(scale > 1e-6, scale, np.inf)


def cosines(rows: tuple[list[str], np.ndarray], query: str) -> np.ndarray:
    """Cosine of standardised embeddings to one spot; -inf to itself."""
    names, vectors = rows
    vectors = standardised(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = unit @ unit[names.index(query)]
    found[names.index(query)] = -np.inf
    return found


def test_neighbours_are_those_of_brute_force(study: Study, rows: tuple[list[str], np.ndarray]):
    query = spot_of(study)
    found = study.search(ENCODER, spots=[query], k=8)
    similarity = cosines(rows, query)
    order = np.argsort(-similarity, kind="stable")[:8]
    assert list(found["spot"]) == [rows[0][i] for i in order]
    np.testing.assert_allclose(found["similarity"], similarity[order], atol=1e-5)
    assert list(found["rank"]) == list(range(1, 9))
    assert list(found.columns) == list(COLUMNS)
    for row in found.itertuples():
        adata = study.slide(row.slide)
        at = adata.obs_names.get_loc(row.spot.partition("/")[2])
        assert (row.x, row.y) == tuple(adata.obsm["spatial"][at])
        assert row.patient == row.slide.split("_")[1].upper()


def test_other_metrics(study: Study, rows: tuple[list[str], np.ndarray]):
    names, vectors = rows
    query = spot_of(study)
    own = names.index(query)
    for metric, values in (
        ("ip", vectors @ vectors[own]),
        ("l2", -((vectors - vectors[own]) ** 2).sum(axis=1)),
    ):
        values[own] = -np.inf
        order = np.argsort(-values, kind="stable")[:6]
        found = study.search(ENCODER, spots=[query], k=6, metric=metric, standardize=False)
        assert list(found["spot"]) == [names[i] for i in order]
        np.testing.assert_allclose(found["similarity"], values[order], rtol=1e-5)


def test_networks_are_compared_as_they_are_and_built_ins_standardised(study: Study, monkeypatch: pytest.MonkeyPatch):
    def found(**options: bool) -> pd.DataFrame:
        return study.search(ENCODER, spots=[spot_of(study)], k=30, **options)

    plain, scaled = found(standardize=False), found(standardize=True)
    assert list(plain["spot"]) != list(scaled["spot"])
    pd.testing.assert_frame_equal(found(), scaled)
    assert index_table.standardized("colour-stats@90um")
    assert not index_table.standardized("uni2-h@90um")
    monkeypatch.setattr(registry, "BUILT_INS", ())  # now it is taken for a network
    pd.testing.assert_frame_equal(found(), plain)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_standardised(study: Study, rows: tuple[list[str], np.ndarray], metric: str):
    names, vectors = rows
    there = [name.startswith(SLIDE[:-1]) for name in names]
    scale = vectors[there].std(axis=0)
    z = (vectors - vectors[there].mean(axis=0)) / np.where(scale > 1e-6, scale, np.inf)
    query = spot_of(study, 5, "synthetic_p2_s3")
    found = study.search(
        ENCODER, spots=[query], k=6, metric=metric, standardize=True, slides=["synthetic_p1_*"], exclude="slide"
    )
    own = z[names.index(query)]
    norms = np.linalg.norm(z, axis=1) * np.linalg.norm(own)
    values = z @ own / norms if metric == "cosine" else -((z - own) ** 2).sum(axis=1)
    order = [i for i in np.argsort(-values, kind="stable") if there[i]][:6]
    assert list(found["spot"]) == [names[i] for i in order]
    np.testing.assert_allclose(found["similarity"], values[order], rtol=1e-3)


def test_leaving_out_slide_patient_or_cohort(copy: Callable[[], Study]):
    study = copy()
    query = spot_of(study)
    assert set(study.search(ENCODER, spots=[query], k=500)["slide"]) == set(study.slides)
    assert set(study.search(ENCODER, spots=[query], k=500, exclude="slide")["slide"]) == set(study.slides) - {SLIDE}
    by_patient = study.search(ENCODER, spots=[query], k=500, exclude="patient")
    assert set(by_patient["slide"]) == {"synthetic_p2_s3"}
    assert len(by_patient) == study.slide("synthetic_p2_s3").n_obs
    x, y = study.slide(SLIDE).obsm["spatial"][5]
    region = study.search(ENCODER, regions=[f"{SLIDE}:{x},{y}"], k=500, exclude="patient")
    assert list(region["spot"]) == list(by_patient["spot"])
    assert len(study.search(ENCODER, spots=[query], k=500, exclude="cohort")) == 0  # all three are in it
    study.rm(cohort="c")
    with pytest.raises(InputError, match="is in no cohort"):
        study.search(ENCODER, spots=[query], exclude="cohort")


def test_several_queries(study: Study):
    queries = [spot_of(study, 3), spot_of(study, 9)]
    found = study.search(ENCODER, spots=queries, k=4)
    assert list(found["query"]) == [queries[0]] * 4 + [queries[1]] * 4
    assert not (found["query"] == found["spot"]).any()


def test_any_of_a_set_of_spots(study: Study, rows: tuple[list[str], np.ndarray]):
    queries = [spot_of(study, 3), spot_of(study, 9), spot_of(study, 4, "synthetic_p2_s3")]
    found = study.search(ENCODER, spots=queries, k=12, combine="any")
    best = np.max([cosines(rows, query) for query in queries], axis=0)
    best[[rows[0].index(query) for query in queries]] = -np.inf
    order = np.argsort(-best, kind="stable")[:12]
    assert list(found["spot"]) == [rows[0][i] for i in order]
    assert set(found["query"]) == {"any of 3 spots"}
    np.testing.assert_allclose(found["similarity"], best[order], atol=1e-5)


def test_within_a_radius(study: Study, rows: tuple[list[str], np.ndarray], monkeypatch: pytest.MonkeyPatch):
    from spared_fm.study import search_engine

    monkeypatch.setattr(search_engine, "_FIRST", 4)  # so that it asks several times
    queries = [spot_of(study, 3), spot_of(study, 9)]
    cut = float(np.sort(cosines(rows, queries[0]))[-30] - 1e-6)
    found = study.search(ENCODER, spots=queries, radius=cut)
    for query in queries:
        similarity = cosines(rows, query)
        order = [i for i in np.argsort(-similarity, kind="stable") if similarity[i] >= cut]
        assert list(found.loc[found["query"] == query, "spot"]) == [rows[0][i] for i in order]
    assert len(study.search(ENCODER, spots=queries[:1], radius=cut, k=7)) == 7
    far = study.search(ENCODER, spots=queries[:1], radius=0.0, metric="l2")
    assert len(far) == 0
    assert list(far.columns) == list(COLUMNS)


def test_one_result_per_slide(study: Study, rows: tuple[list[str], np.ndarray]):
    query = spot_of(study)
    found = study.search(ENCODER, spots=[query], one_per_slide=True)
    similarity = cosines(rows, query)
    best: dict[str, str] = {}
    for i in np.argsort(-similarity, kind="stable"):
        best.setdefault(rows[0][i].partition("/")[0], rows[0][i])
    assert list(found["spot"]) == list(best.values())
    assert list(study.search(ENCODER, spots=[query], one_per_slide=True, k=2)["spot"]) == list(best.values())[:2]
    cut = float(found["similarity"].iloc[1])
    assert len(study.search(ENCODER, spots=[query], one_per_slide=True, radius=cut)) == 2


def test_one_result_per_slide_is_its_best_for_any_of_a_set(study: Study):
    values = np.array([[0.9, 0.95]] + [[0.0, 0.95]] * 7 + [[0.5, 0.0]] * 7 + [[0.0, 0.94]])
    names = np.concatenate([ids_of(0, range(8)), ids_of(1, range(8))])

    class Engine:
        metric = "ip"

        def nearest(self, vectors: np.ndarray, k: int, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
            ids, some = names[kept(names)], values[kept(names)]
            order = np.argsort(-vectors @ some.T, axis=1, kind="stable")[:, :k]
            return ids[order], np.take_along_axis(vectors @ some.T, order, 1)

    rows = Rows(study.layout, ENCODER, {"a": 0, "b": 1}, {0: 8, 1: 8})
    [hits] = best_per_slide(Engine(), rows, [Query("any", np.eye(2))], rows.kept({"a": None, "b": None}), 2, None)
    assert hits == [(0, 0.95), (int(ids_of(1, 7)), 0.94)]


def test_filters(study: Study):
    query = spot_of(study)

    def found(**options: object) -> list[str]:
        options["standardize"] = False  # that is by the slides that are searched
        return list(study.search(ENCODER, spots=[query], k=500, **options)["spot"])

    every = found()
    obs = {slide: study.slide(slide).obs for slide in study.slides}
    row = obs[SLIDE]["array_row"]
    some = sorted(row.unique())[:3]
    wanted = {f"{s}/{b}" for s, table in obs.items() for b in table.index[table["array_row"].isin(some)]}
    assert found(where={"array_row": some}) == [spot for spot in every if spot in wanted]
    assert found(where=[f"array_row={value:g}" for value in some]) == found(where={"array_row": some})
    assert found(where={"array_row": some, "slide": "*_s1"}) == [
        s for s in every if s in wanted and s.startswith(SLIDE)
    ]
    assert found(where=["patient=P2"]) == found(slides="synthetic_p2_s3")
    assert found(where={"patient": ["P1", "P2"]}) == every
    in_cohort = study.cohort_data("c").obs
    names = set(in_cohort["slide"].astype(str) + "/" + in_cohort["barcode"].astype(str))
    assert found(cohort="c") == [spot for spot in every if spot in names]
    assert found(where=["tissue=synth*"]) == every  # a label of the slides


def test_columns_and_expression_beside(study: Study):
    cohort = study.cohort_data("c")
    genes = [str(gene) for gene in cohort.var_names[:2]]
    options = {"spots": [spot_of(study)], "k": 9}
    found = study.search(ENCODER, columns=["array_row", "split"], genes=genes, **options)
    assert list(found.columns) == [*COLUMNS, "array_row", "split", f"counts:{genes[0]}", f"counts:{genes[1]}"]
    for row in found.to_dict("records"):
        adata = study.slide(row["slide"])
        spot = adata[row["spot"].partition("/")[2]]
        assert row["array_row"] == spot.obs["array_row"].iloc[0]
        assert row["split"] == (study.layout.attributes(study.layout.slide(row["slide"])) or {})["split"]
        assert [row[f"counts:{gene}"] for gene in genes] == spot[:, genes].X.toarray()[0].tolist()
    done = study.search(ENCODER, genes=genes[:1], layer="d_lognorm", cohort="c", **options)
    joined = (cohort.obs["slide"].astype(str) + "/" + cohort.obs["barcode"].astype(str)).tolist()
    expected = np.asarray(cohort.layers["d_lognorm"])[[joined.index(spot) for spot in done["spot"]], 0]
    np.testing.assert_allclose(done[f"d_lognorm:{genes[0]}"], expected, rtol=1e-6)


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
    vector = study.search(ENCODER, vectors=[study.features(SLIDE, ENCODER)[7]], k=1).iloc[0]
    assert vector["spot"] == spot_of(study, 7)


def test_few_files_are_held_open(study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index_table, "MAPPED_CHUNKS", 16)
    rows = index_table.Rows(study.layout, ENCODER, {slide: number for number, slide in enumerate(study.slides)})
    every = rows.kept(dict.fromkeys(study.slides))
    ids = np.concatenate([ids for ids, _ in rows.blocks(every)])
    np.testing.assert_array_equal(ids, every.ids())
    assert sum(array.n_chunks for array in rows._arrays.values()) <= 8
    np.testing.assert_array_equal(rows.vectors(ids[[150, 3, 70]])[1], study.features(SLIDE, ENCODER)[3])


def test_many_rows_without_an_index_are_said(study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searches, "EXACT_ROWS", 100)
    with pytest.warns(UserWarning, match="rows are compared one by one; `spared-fm index"):
        study.search(ENCODER, spots=[spot_of(study)], k=1)
    study.search(ENCODER, spots=[spot_of(study)], k=1, exact=True)
    study.search(ENCODER, spots=[spot_of(study)], k=1, slides=SLIDE)


def test_bad_queries(study: Study, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no")
    Image.new("RGB", (50, 50)).save(tmp_path / "small.png")
    spot = spot_of(study)
    for options, message in (
        ({}, "nothing to search for"),
        ({"spots": ["nope/x"]}, "no slide 'nope'"),
        ({"spots": [f"{SLIDE}/nope"]}, "no spot 'nope'"),
        ({"spots": [spot], "k": 0}, "k is 0"),
        ({"spots": [spot], "radius": float("nan")}, "not a finite number"),
        ({"spots": [spot], "exclude": "moon"}, "moon"),
        ({"spots": [spot], "combine": "moon"}, "'moon' is not mean or any"),
        ({"spots": [spot], "metric": "moon"}, "moon"),
        ({"spots": [spot], "where": ["moon"]}, "is not COLUMN=VALUE"),
        ({"spots": [spot], "where": ["moon=1"]}, "has a column 'moon' .columns: .*array_row"),
        ({"spots": [spot], "where": ["array_row=moon"]}, "no spot of the 3 slides searched fits"),
        ({"spots": [spot], "cohort": "moon"}, "no cohort 'moon'"),
        ({"spots": [spot], "columns": ["moon"]}, "no slide has a column 'moon'"),
        ({"spots": [spot], "columns": ["slide"]}, "given with every result"),
        ({"spots": [spot], "genes": ["moon"]}, "no gene 'moon' in the slides found"),
        ({"spots": [spot], "genes": ["moon"], "cohort": "c"}, "no gene 'moon' in cohort 'c'"),
        ({"spots": [spot], "genes": ["x"], "layer": "lognorm"}, "is a layer of a cohort"),
        ({"spots": [spot], "genes": ["x"], "layer": "moon", "cohort": "c"}, "has no layer 'moon'"),
        ({"spots": [spot], "layer": "counts"}, "name a gene"),
        ({"vectors": [np.ones(3)]}, "has 3 dimensions, embeddings 'stain-bank' have 560"),
        ({"images": [tmp_path / "broken.png"]}, r"broken\.png"),
        ({"images": [tmp_path / "small.png"], "mpp": 0.5}, r"small\.png.*smaller than a patch \(112 µm\)"),
        ({"images": [tmp_path / "small.png"]}, r"small\.png.*smaller than a patch \(224 px\)"),
        ({"images": [tmp_path / "small.png"], "exclude": "slide"}, "needs a query spot"),
    ):
        with pytest.raises(InputError, match=message):
            study.search(ENCODER, **options)
    with pytest.raises(InputError, match="uni"):
        study.search("uni", spots=[spot])


def test_an_empty_store(tmp_path: Path):
    empty = spared_fm.open(tmp_path / "S", create=True)
    for call in (empty.search, empty.index):
        options = {"spots": ["a/b"]} if call == empty.search else {}
        with pytest.raises(InputError, match="there are no slides in the store yet; `spared-fm ingest` adds them"):
            call(ENCODER, **options)
