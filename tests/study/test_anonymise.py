from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import spared_fm
from spared_fm.errors import InputError
from spared_fm.study import matrix
from spared_fm.study.anonymise import LEFT_OUT, hidden, names
from spared_fm.study.matrix_report import report
from tests.study.conftest import ENCODER


def test_names_are_neutral_and_stable():
    found = names(["b", "a", "c"], ["P2", None, "P1", "P2"], ["C", "a_only", "run 2024-05-01"])
    assert sorted(found.slides.values()) == ["slide 1", "slide 2", "slide 3"]
    assert sorted(found.patients.values()) == ["patient A", "patient B"]
    assert found == names(iter(["c", "b", "a"]), ["P1", "P2"], ["C", "a_only", "run 2024-05-01"])
    assert found.chosen["C"] == "C"
    assert sorted(found.chosen[name] for name in ("a_only", "run 2024-05-01")) == ["study 1", "study 2"]
    many = names([], [f"P{i}" for i in range(30)])
    assert {"patient Z", "patient AA", "patient AD"} <= set(many.patients.values())


def test_numbers_do_not_tell_the_order_of_ids():
    ids = [f"2024-{i:04d}" for i in range(40)]
    order = [int(name.split()[1]) for _, name in sorted(names(ids, []).slides.items())]
    assert order != sorted(order)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.from_regex(r"[A-Za-z0-9._-]{4,12}", fullmatch=True).filter(lambda s: not s.isdigit()),
        min_size=1,
        unique=True,
    )
)
def test_no_telling_id_is_left_in_text(ids: list[str]):
    ids = [one for one in ids if not re.search("slide|page|[.]", one)]
    page = "".join(f'<p aria-label="{one}">{one}: {one}/train</p>' for one in ids)
    found = hidden(page, names(ids, []))
    assert not [one for one in ids if one in re.sub("aria-label|train|slide", "", found)]
    assert found.count("<p ") == len(ids)


def test_markup_and_short_names_stay_as_they_are():
    page = '<style>.table { color: red }</style><table class="table"><td>C3</td><td>table</td></table>'
    found = hidden(page, names(["table", "C3"], []))
    assert found.startswith('<style>.table { color: red }</style><table class="table"><td>C3</td><td>slide ')


def test_what_is_escaped_in_html_is_found():
    assert "patient A" in hidden("<td>Ann &amp; Bea</td>", names([], ["Ann & Bea"]))


@pytest.mark.parametrize("left", ["scan.svs", "/home/ann/x", "C:\\users\\ann\\scan.tif", "counts.h5ad"])
def test_files_are_refused(left: str):
    with pytest.raises(InputError, match="would name"):
        hidden(f"<p>cannot read {left}</p>", names(["one1"], []))


def test_images_with_metadata_are_refused():
    def page(**options: object) -> str:
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, format="JPEG", **options)  # type: ignore[arg-type]
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'

    exif = Image.Exif()
    exif[0x9003] = "2024:05:01 10:00:00"
    assert hidden(page(), names([], [])) == page()
    for options in ({"exif": exif}, {"comment": b"ward 7"}):
        with pytest.raises(InputError, match="image of the anonymised page carries"):
            hidden(page(**options), names([], []))


TOML = f"""
name = "ward-patient-Smith"
cohorts = ["only_biopsy-0017", "plain"]
encoders = ["{ENCODER}"]
heads = ["gene-mean", "ridge", {{name = "pca-ridge", params = {{components = -1}}}}]
targets = ["lognorm"]
protocol = "strict"
"""


@pytest.fixture(scope="module")
def telling(synthetic_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store whose slides, patients, cohort, benchmark and files say who it is; a kept benchmark; and what must not be shown."""
    folder = tmp_path_factory.mktemp("Smith-2024-05-01")
    slides, patients = ["biopsy-0017", "X9", "20240501"], ["Smith^John", "Smith^John", "P7"]
    study = spared_fm.open(folder / "store", create=True)
    for made, slide, patient, split in zip(
        sorted(p for p in synthetic_slides.iterdir() if p.is_dir()),
        slides,
        patients,
        ("train", "test", "test"),
        strict=True,
    ):
        moved = shutil.copytree(made, folder / "scanned_by_ann" / slide)
        study.ingest(moved, slide=slide, patient=patient, split=split)
    study.encode(ENCODER, threads=1)
    for cohort in ("only_biopsy-0017", "plain"):
        study.cohort(cohort, n_genes=8, panel="variance")
    (folder / "b.toml").write_text(TOML)
    matrix.run(study.layout, folder / "b.toml")
    return folder / "store", [*slides, *patients, "Smith", "only_biopsy", "scanned_by_ann", "2024", str(folder)]


def test_a_report_names_nobody(telling: tuple[Path, list[str]], tmp_path: Path):
    store, secret = telling
    layout = spared_fm.open(store).layout
    report(layout, "ward-patient-Smith", tmp_path / "open.html", n_resamples=20)
    report(layout, "ward-patient-Smith", tmp_path / "closed.html", n_resamples=20, anonymise=True)
    opened, closed = (_text((tmp_path / name).read_text()) for name in ("open.html", "closed.html"))
    assert {one for one in secret if _has(opened, one)} >= {"biopsy-0017", "X9", "20240501", "Smith^John", "Smith"}
    assert [one for one in secret if _has(closed, one)] == []
    for said in ("slide 1", "patient A", "study 1", "plain", LEFT_OUT):
        assert said in closed, said
    report(layout, "ward-patient-Smith", tmp_path / "again.html", n_resamples=20, anonymise=True)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "closed.html").read_bytes()


def _text(page: str) -> str:
    """All of a page but pictures, styles, coordinates and what others published."""
    own = page[: page.index('id="published"')]
    return re.sub(r'<style>.*?</style>|data:image/[^"]*| d="[^"]*"', "", own, flags=re.DOTALL)


def _has(text: str, secret: str) -> bool:
    """Whether text holds a secret; a short one as a word."""
    around = ("(?<![A-Za-z0-9])", "(?![A-Za-z0-9])") if len(secret) < 4 else ("", "")
    return re.search(re.escape(secret).join(around), text) is not None
