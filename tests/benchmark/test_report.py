from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from spared_fm.benchmark.report import COLOUR_STEPS, Gallery, Overlay, Table, write_report
from spared_fm.errors import InputError
from tests.benchmark.pages import Page

ROWS = [
    {"encoder": "a", "head": "gene-mean", "target": "lognorm", "pcc_gene": 0.0, "mse": 2.0, "n_spots": 1691},
    {"encoder": "a", "head": "ridge", "target": "lognorm", "pcc_gene": 0.5, "mse": 1.0, "n_spots": 1691},
    {"encoder": "a", "head": "ridge", "target": "d_lognorm", "pcc_gene": 0.7, "mse": 0.4, "n_spots": 1691},
    {"encoder": "b", "head": "ridge", "target": "d_lognorm", "pcc_gene": None, "mse": -0.1234, "n_spots": 1691},
]


def picture(seed: int = 0, shape: tuple[int, ...] = (40, 50, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def overlay(**more) -> Overlay:
    values = {"measured": np.array([0.0, 1, 2, np.nan]), "predicted": np.array([0.5, 1, 1.5, 1])}
    given = {"slide": "s1", "gene": "ERBB2", "thumbnail": picture(), "spot_px": 6.0, "panels": values, "caption": "c"}
    return Overlay(**(given | {"xy": np.array([[5.0, 6], [15, 6], [25, 6], [35, 6]])} | more))


@pytest.fixture
def write(tmp_path):
    def do(**more) -> Page:
        given = {"title": "T", "notice": "N", "tables": [], "overlays": [], "gallery": [], "facts": {}}
        write_report(tmp_path / "r.html", **(given | more))
        return Page((tmp_path / "r.html").read_text(encoding="utf-8"))

    return do


def test_notice_is_the_first_visible_line(write):
    page = write(notice="All data in this report is SYNTHETIC", title="Demo", tables=[Table("t", ROWS, "c")])
    assert page.text[0] == "All data in this report is SYNTHETIC"


def test_the_page_needs_nothing_from_outside(write):
    hits = [(picture(i, (8, 8, 3)), f"hit {i}") for i in range(3)]
    page = write(overlays=[overlay()], gallery=[Gallery("g", picture(), "q", hits)], tables=[Table("t", ROWS, "c")])
    assert not page.all("script")
    assert not page.all("link")
    links = [a[k] for _, a in page.tags for k in ("src", "href") if k in a]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)


def test_every_string_is_escaped(write):
    evil = "<script>alert(1)</script>\"'&"
    page = write(
        title=evil,
        notice=evil,
        facts={evil: evil},
        tables=[Table(evil, [{evil: evil}], evil)],
        overlays=[overlay(slide=evil, gene=evil, caption=evil, unit=evil, panels={evil: np.zeros(4)}, pcc={evil: 0.5})],
        gallery=[Gallery(evil, picture(), evil, [(picture(), evil)])],
    )
    assert not page.all("script")
    assert evil in page.text[0]
    assert any(evil in (a.get("alt") or "") for a in page.all("img"))


def test_pictures_come_out_as_they_went_in(write):
    smooth = np.zeros((16, 24, 3), np.uint8)
    smooth[:, 12:] = [200, 40, 90]
    page = write(gallery=[Gallery("g", smooth, "q", [])])
    data = base64.b64decode(page.all("img")[0]["src"].split(",", 1)[1])
    shown = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert shown.shape == smooth.shape
    assert np.abs(shown - smooth).mean() < 6


def test_best_values_are_bold_among_comparable_rows_only(write):
    page = write(tables=[Table("t", ROWS, "c")])
    assert page.bold == ["0.500", "1.000", "−0.123"]  # the lone PCC on d_lognorm has no rival
    assert "–" in page.text
    assert "1\u2009691" in page.text
    assert [h for h in page.text if "↑" in h or "↓" in h] == ["PCC-Gene ↑", "MSE ↓"]


def test_ties_as_printed_are_all_bold(write):
    rows = [{"target": "t", "mse": 0.50001}, {"target": "t", "mse": 0.49999}, {"target": "t", "mse": 0.6}]
    assert write(tables=[Table("t", rows, "c")]).bold == ["0.500", "0.500"]


def test_panels_share_one_scale_and_sit_at_their_spots(write):
    page = write(overlays=[overlay()])
    paths = [(a["stroke"], a["d"]) for a in page.all("path")]
    assert len(paths) == 3 + 3  # three levels measured, three predicted
    where = {(m[0], m[1]): colour for colour, d in paths[:3] for m in re.findall(r"M([\d.]+) ([\d.]+)h0", d)}
    assert set(where) == {("5.0", "6.0"), ("15.0", "6.0"), ("25.0", "6.0")}
    assert where["5.0", "6.0"] == "#440154"  # viridis, lowest
    assert where["25.0", "6.0"] == "#fde725"  # and highest
    predicted = {m: colour for colour, d in paths[3:] for m in re.findall(r"M([\d.]+) ", d)}
    assert predicted["15.0"] == where["15.0", "6.0"]  # equal values, equal colours
    assert predicted["5.0"] not in where.values()
    ring = page.all("circle")
    assert [(c["cx"], c["cy"]) for c in ring] == [("35.0", "6.0")]


def test_one_bright_spot_does_not_set_the_scale(write):
    values = np.linspace(0, 1, 500)
    values[7] = 1000.0
    xy = np.column_stack([np.arange(500.0), np.zeros(500)])
    page = write(overlays=[overlay(xy=xy, panels={"m": values})])
    assert len(page.all("path")) == COLOUR_STEPS


@pytest.mark.parametrize("values", [np.full(4, np.nan), np.full(4, 2.5)])
def test_constant_or_absent_values_are_drawn(write, values):
    page = write(overlays=[overlay(panels={"m": values})])
    assert len(page.all("path")) + len(page.all("circle")) >= 1


def test_a_slides_picture_is_stored_once(write):
    page = write(overlays=[overlay(gene="A"), overlay(gene="B"), overlay(slide="s2", thumbnail=picture(9))])
    stored = [a["id"] for a in page.all("image")]
    assert len(stored) == len(set(stored)) == 2
    used = [a["href"][1:] for a in page.all("use")]
    assert used == [stored[0]] * 6 + [stored[1]] * 3


def test_pcc_and_unit_are_shown(write):
    page = write(overlays=[overlay(pcc={"predicted": -0.256}, unit="ln(1 + counts per 10⁴)")])
    assert "PCC −0.26" in page.text
    assert "ln(1 + counts per 10⁴)" in page.text


def test_every_picture_has_a_text(write):
    page = write(overlays=[overlay()], gallery=[Gallery("g", picture(), "q", [(picture(), "h")])])
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))


@pytest.mark.parametrize(
    "bad",
    [
        {"thumbnail": np.zeros((4, 4, 3))},
        {"thumbnail": np.zeros((4, 4), np.uint8)},
        {"panels": {"m": np.zeros(3)}},
    ],
)
def test_bad_overlays_are_refused(write, bad):
    with pytest.raises(InputError, match="ERBB2 on s1"):
        write(overlays=[overlay(**bad)])


def test_a_failed_write_leaves_the_old_page(write, tmp_path, monkeypatch):
    write(title="first")
    before = (tmp_path / "r.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"r\.html: cannot write .*No space left"):
        write(title="second")
    assert (tmp_path / "r.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_folder_is_made_and_a_file_in_its_place_is_named(tmp_path):
    empty = {"title": "t", "notice": "n", "tables": [], "overlays": [], "gallery": [], "facts": {}}
    write_report(tmp_path / "new" / "r.html", **empty)
    assert (tmp_path / "new" / "r.html").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_report(tmp_path / "file" / "r.html", **empty)
