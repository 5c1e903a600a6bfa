from __future__ import annotations

import shutil
from pathlib import Path

import anndata as ad
import pytest

import spared_fm
from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.table import ingest_table, slide_id


@pytest.fixture
def empty(tmp_path: Path) -> Study:
    return spared_fm.open(tmp_path / "store", create=True)


@pytest.fixture
def folder(tmp_path: Path, synthetic_slides: Path) -> Path:
    """Two different slides, both called 1, in two folders."""
    for name, source in (("A", "synthetic_p1_s1"), ("B", "synthetic_p2_s3")):
        shutil.copytree(synthetic_slides / source, tmp_path / "data" / name)
        (tmp_path / "data" / name / "counts.h5ad").rename(tmp_path / "data" / name / "1.h5ad")
    return tmp_path / "data"


def table(folder: Path, text: str) -> Path:
    (folder / "slides.csv").write_text(text)
    return folder / "slides.csv"


def test_two_slides_both_called_1(empty: Study, folder: Path):
    rows = ingest_table(
        empty.layout,
        table(folder, "path,patient,split,image\nA/1.h5ad,P1,train,A/image.jpg\nB/1.h5ad,P2,test,B/image.jpg\n"),
    )
    assert [(row["slide"], row["status"], row["patient"], row["split"], row["error"]) for row in rows] == [
        ("A__1", "added", "P1", "train", None),
        ("B__1", "added", "P2", "test", None),
    ]
    assert empty.slides == ["A__1", "B__1"]
    records = [empty.layout.attributes(empty.layout.slide(slide)) or {} for slide in empty.slides]
    assert records[0]["fingerprint"] != records[1]["fingerprint"]
    again = ingest_table(empty.layout, folder / "slides.csv")
    assert [row["status"] for row in again] == ["unchanged", "unchanged"]


def test_every_row_is_tried_and_failures_say_why(empty: Study, folder: Path):
    rows = ingest_table(
        empty.layout,
        table(
            folder,
            "path, slide, mpp, image, split\n"
            "gone/1.h5ad,,,,\n"
            "A/1.h5ad,first,,A/image.jpg,train\n"
            "B/1.h5ad,first,,B/image.jpg,\n"
            "B/1.h5ad,second,fast,B/image.jpg,\n"
            "B/1.h5ad,third,0.7,B/image.jpg,\n"
            "B/1.h5ad,fourth,,B/image.jpg,trian\n",
        ),
    )
    assert [row["status"] for row in rows] == ["failed", "added", "failed", "failed", "added", "failed"]
    errors = [row["error"] for row in rows]
    for position, words in {
        0: "no such file",
        2: "taken by another image",
        3: "'fast' is not a number",
        5: "trian",
    }.items():
        assert words in errors[position]
        assert "\n" not in errors[position]
    assert empty.slides == ["first", "third"]
    assert rows[4]["mpp"] == 0.7


def test_absolute_paths_elsewhere_have_a_common_root(empty: Study, folder: Path, tmp_path: Path):
    (tmp_path / "lists").mkdir()
    rows = ingest_table(
        empty.layout,
        table(
            tmp_path / "lists",
            f"path,image\n{folder}/A/1.h5ad,{folder}/A/image.jpg\n{folder}/B/1.h5ad,../data/B/image.jpg\n",
        ),
    )
    assert [row["slide"] for row in rows] == ["A__1", "B__1"]


def test_a_file_of_several_slides_keeps_their_ids(empty: Study, folder: Path):
    adata = ad.read_h5ad(folder / "A/1.h5ad")
    adata.obs["slide_id"] = ["x" if i % 2 else "y" for i in range(adata.n_obs)]
    adata.write_h5ad(folder / "many.h5ad")
    rows = ingest_table(empty.layout, table(folder, "path\nmany.h5ad\n"))
    assert sorted(row["slide"] for row in rows) == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a readable CSV"),
        ("slide\nx\n", "no column 'path'"),
        ("path,colour\nx,red\n", "unknown column 'colour'"),
        ("path\n", "has no rows"),
        ("path,slide\n,x\n", "a row has no path"),
        ('path\n"x\n', "not a readable CSV"),
    ],
)
def test_bad_tables(empty: Study, folder: Path, text: str, words: str):
    with pytest.raises(InputError, match=words):
        ingest_table(empty.layout, table(folder, text))
    assert empty.slides == []


def test_no_table(empty: Study, tmp_path: Path):
    with pytest.raises(InputError, match="no such table"):
        ingest_table(empty.layout, tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/d/A/1.svs", "A__1"),
        ("/d/1.ome.tif", "1.ome"),
        ("/d/A/s/outs", "A__s"),
        ("/d/outs", "d"),
        ("/d/A b/ä.svs", "A_b___"),
        ("/elsewhere/1.svs", "1"),
        ("/d/../d/A/1.svs", "A__1"),
        ("/d/.hidden/1.svs", "hidden__1"),
    ],
)
def test_ids(path: str, expected: str):
    assert slide_id(Path(path), Path("/d")) == expected
