from __future__ import annotations

import base64
import xml.etree.ElementTree as ET

import pytest

from spared_fm.benchmark.completion_report import FLOOR, write_completion_report
from spared_fm.errors import InputError
from tests.benchmark.pages import Page

SCORED = {"mse": "hidden measured entries", "raw_mse": "the raw target", "zeros_mse": "zeros too"}


def summary_row(method, split, rule, mse, **more):
    row = {"method": method, "split": split, "share_hidden": rule, "repeats": 10, "hidden": 0.381, "entries": 74496.0}
    scores = {"mse": mse, "mae": mse / 2, "pcc": 0.5, "mse_low": mse - 0.05, "mse_high": mse + 0.05}
    return row | scores | {"raw_mse": mse + 0.1, "zeros_mse": 9 - mse} | more


def summary(rules=("spared", 0.1, 0.5), splits=("val", "test")):
    """Synthetic: near < wide on measured entries, and the other way about where zeros count."""
    rows = []
    for rule in rules:
        for split in splits:
            rows.append(summary_row("wide", split, rule, 1.2))
            cover = {"coverage": 0.912, "interval_score": 2.0, "interval_score_constant": 2.5}
            rows.append(summary_row("near", split, rule, 0.6, **cover))
            known = {key: rows[-1][key] for key in ("split", "share_hidden", "repeats", "hidden", "entries")}
            rows.append({"method": FLOOR, **known, "mse": 0.41, "mae": 0.3, "pcc": 0.9})
    return rows


def slide_rows(split="test", slides=("F1", "F2"), rule="spared"):
    out = []
    for repeat in (0, 1):
        for number, slide in enumerate((*slides, "all")):
            known = {"split": split, "slide": slide, "share_hidden": rule, "repeat": repeat}
            out.append({"method": "near", **known, "mse": 0.5 + 0.1 * repeat + number})
            out.append({"method": "wide", **known, "mse": 1.5 - number})
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Page of :func:`summary`, written once."""
    path = tmp_path_factory.mktemp("page") / "c.html"
    facts = {"split_label": "how well new patients are predicted", "fitted": "slides A, D, E; C chose"}
    write_completion_report(path, title="T", notice="SYNTHETIC", summary=summary(), scored=SCORED, **facts)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def write(tmp_path):
    def do(**more) -> Page:
        given = {"title": "T", "notice": "N", "summary": summary(), "scored": SCORED}
        write_completion_report(tmp_path / "c.html", **(given | more))
        return Page((tmp_path / "c.html").read_text(encoding="utf-8"))

    return do


def said(page):
    return " ".join(page.text)


def after(page, start, end=None):
    """Texts from one heading to the next."""
    first = page.text.index(start)
    return page.text[first : page.text.index(end, first) if end else None]


def drawing(page, number=0):
    data = base64.b64decode(page.all("img")[number]["src"].removeprefix("data:image/svg+xml;base64,"))
    return ET.fromstring(data)


def texts(svg):
    return ["".join(node.itertext()) for node in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_page_needs_nothing_from_outside_and_tells_its_notice_first(page):
    assert page.text[0] == "SYNTHETIC"
    assert not page.all("script")
    assert not page.all("link")
    links = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert len(links) == 2
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert all(a["alt"] for a in page.all("img"))
    for number in range(2):
        assert not [
            value
            for node in drawing(page, number).iter()
            for key, value in node.attrib.items()
            if key.endswith("href") and not value.startswith("#")
        ]


def test_every_string_is_escaped(write):
    evil = "<script>alert(1)</script>\"'&$x$"
    rows = [row | {"method": evil} if row["method"] == "near" else row for row in summary()]
    page = write(
        title=evil, notice=evil, summary=rows, scored={evil: evil}, split_label=evil, fitted=evil, facts={evil: evil}
    )
    assert not page.all("script")
    assert said(page).count(evil) > 8
    assert evil in texts(drawing(page))


def test_what_is_honest_is_said(page, write):
    text = said(page)
    for part in (
        "how well new patients are predicted",
        "slides A, D, E; C chose",
        "True zeros are never among the hidden entries",
        "Entries are hidden in the raw counts",
        "no fit has looked at these",
        "chose settings on these slides",
        "they say nothing about other slides or patients",
        "two halves",
        *SCORED.values(),
    ):
        assert part in text
    assert "fitted on these slides" not in text
    assert "fitted on these slides" in said(write(summary=summary(("spared",), splits=("train", "test"))))
    bare = said(write(summary=[summary_row("wide", "test", "spared", 1.2)]))
    assert "two halves" not in bare
    assert "Coverage" not in bare
    assert "the split has no label" in bare


def test_findings_follow_the_figures(page):
    findings = after(page, "test", "How they were made, and what they do not say")
    assert "Lowest MSE: near under 3 of 3 rules." in findings
    assert "Lowest zeros-too MSE: wide under 3 of 3 rules." in findings
    assert (
        "Rule spared: MSE 0.60 by near is 0.50 times that of wide; their intervals over spots do not overlap."
        in findings
    )
    covers = "90 % intervals of near cover 91.2 % to 91.2 % of the hidden entries and score better than intervals of one width"
    assert f"{covers} under 3 of 3 rules." in findings
    assert not any(FLOOR in text for text in findings)


def test_overlapping_intervals_are_not_told_apart(write):
    rows = [row | {"mse_low": 0.1, "mse_high": 2.0} if "mse_low" in row else row for row in summary(("spared",))]
    assert "their intervals over spots overlap, so this page does not tell them apart." in said(write(summary=rows))


def test_winners_that_differ_by_rule_are_named_with_their_rules(write):
    rows = [
        row | {"mse": 0.1} if (row["method"], row["share_hidden"]) == ("wide", 0.5) else row
        for row in summary(splits=("test",))
    ]
    assert "Lowest MSE: near under 2 of 3 rules (spared, 0.1); wide under 1 of 3 rules (0.5)." in said(
        write(summary=rows)
    )


def test_table_of_a_rule(page):
    table = after(page, "Rule spared", "10 % hidden")
    assert [text for text in table if text in ("val", "test", "wide", "near", FLOOR)] == [
        *("val", "wide", "val", "near", "val", FLOOR),
        *("test", "wide", "test", "near", "test", FLOOR),
    ]
    assert "0.550–0.650" in table
    assert "0.912" in table
    assert any("test: 38.1 % of the measured entries, 74\u2009496 scored in each repeat" in text for text in table)
    # under each rule, on each split: mse, mae, pcc (a tie), raw mse of near, zeros-too mse of wide; interval score has no rival
    best = ["0.500", "7.800", "0.600", "0.300", "0.500", "0.700"]
    assert page.bold == best * 6


def test_the_floor_is_last_and_never_the_best(write):
    page = write(summary=summary(rules=("spared",), splits=("test",))[::-1])
    table = after(page, "Rule spared")
    assert [text for text in table if text in ("wide", "near", FLOOR)] == ["near", "wide", FLOOR]
    assert "0.410" in table
    assert "0.410" not in page.bold


def test_rules_are_shown_named_ones_first_then_by_share(write):
    rules = (0.7, 0.125, "prob-median", "spared")
    page = write(summary=summary(rules, ("test",)))
    heads = ("Rule spared", "Rule prob-median", "12.5 % hidden", "70 % hidden")
    assert [text for text in page.text if text in heads] == list(heads)


def test_curves_name_every_method_and_the_floor(page):
    assert [a["alt"].split(" from")[0] for a in page.all("img")] == ["MSE on val", "MSE on test"]
    assert "near 0.60 to 0.60" in page.all("img")[1]["alt"]
    assert {"near", "wide", "noise floor (half depth)"} < set(texts(drawing(page)))


def test_the_curve_needs_two_shares(write):
    assert not write(summary=summary(rules=("spared", 0.3))).all("img")


def test_large_errors_are_drawn_on_a_logarithmic_axis(write):
    def ticks(factor):
        given = summary((0.1, 0.5), ("test",))
        rows = [row | {"mse": row["mse"] * factor} if row["method"] == "wide" else row for row in given]
        return [text for text in texts(drawing(write(summary=rows))) if text in ("0.0", "2")]

    assert (ticks(1), ticks(20)) == (["0.0"], ["2"])


def test_slides_are_means_over_repeats_with_the_best_of_each(write):
    page = write(summary=summary(("spared",)), rows=slide_rows() + slide_rows(rule=0.1))
    table = after(page, "MSE by slide: test, rule spared")[2:]
    assert table[:3] == ["method", "F1", "F2"]
    assert table[3:9] == ["wide", "1.500", "0.500", "near", "0.550", "1.550"]
    assert page.bold[-2:] == ["0.500", "0.550"]
    assert "By slide" not in said(write(summary=summary(("spared",)), rows=slide_rows(slides=("F1",))))


def test_scores_that_are_not_there_are_dashes(write):
    rows = [row | {"mse": None, "mse_low": None, "mse_high": float("nan")} for row in summary()]
    page = write(summary=rows)
    assert "None" not in said(page)
    assert "nan" not in said(page)
    assert not page.all("img")
    assert "Lowest MSE" not in said(page)


def test_the_same_rows_give_the_same_file(write, tmp_path):
    rows = summary((0.1, 0.5), ("test",))
    write(summary=rows)
    before = (tmp_path / "c.html").read_bytes()
    write(summary=rows)
    assert (tmp_path / "c.html").read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no scores to report"),
        ([{"method": "near", "split": "test"}], "'near' has no 'share_hidden'"),
        ([summary_row("near", "held-out", 0.1, 1.0)], "unknown split 'held-out': choose from train, val, test"),
        ([summary_row("near", "test", "most", 1.0)], "unknown rule 'most': choose spared, prob-median or a share"),
        ([summary_row("near", "test", 30, 1.0)], "unknown rule 30"),
        ([summary_row("near", "test", 0.1, 1.0)] * 2, "'near' is there twice for split test and rule 0.1"),
    ],
)
def test_bad_rows_are_refused_in_one_line(write, tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as refused:
        write(summary=rows)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "c.html").exists()
