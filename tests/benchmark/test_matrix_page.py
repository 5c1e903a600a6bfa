from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from spared_fm.benchmark.intervals import intervals, paired_intervals
from spared_fm.benchmark.matrix_answers import HELPS, HURTS, OPEN, Answer, Result, against_ridge, answers, shown
from spared_fm.benchmark.matrix_drawings import TURNING, GeneMap, GenePlot, Strips, gene_map, gene_plot, strips
from spared_fm.benchmark.matrix_page import Section, published, ranked, sentence, write_matrix_page
from spared_fm.benchmark.matrix_scores import Difference, HeldOut, difference, gene_ranges, score_cell
from spared_fm.benchmark.metrics import score_slides
from spared_fm.benchmark.report import Overlay
from spared_fm.benchmark.spared_metrics import get_metrics
from spared_fm.benchmark.structure import structure
from tests.benchmark.pages import Page

GENES = [f"GENE{i}" for i in range(14)]
SIDE, RESAMPLES = 12, 120
XY = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2).astype(float)
NEAR = np.argsort(((XY[:, None] - XY) ** 2).sum(axis=2), axis=1)[:, 1:7]

#: Head → how much of the truth it gets, fitted on raw and on completed targets; noise is of the same size.
SKILL = {
    "ridge": (0.6, 0.9),
    "knn": (0.2, 0.2),
    "sepal": (0.9, 0.5),
    "context-ridge": (0.8, 0.8),
    "slide-mean": (2.0, 2.0),
    "gene-mean": (0.0, 0.0),
}
LABELS = {"slide-mean": "oracle", "sepal": "small"}


def truth_of(slide: str) -> np.ndarray:
    """Synthetic: smooth patterns, a few of them shared by the genes."""
    rng = np.random.default_rng(sum(map(ord, slide)))
    waves = np.sin(XY @ rng.normal(size=(2, 4)) * 0.5 + rng.uniform(0, 6, 4))
    return (waves @ rng.normal(size=(4, len(GENES))) + rng.normal(size=(len(XY), len(GENES)))).astype(np.float32)


@cache
def held_out(*slides: str) -> HeldOut:
    truth = {s: truth_of(s) for s in slides}
    return HeldOut(
        genes=GENES,
        truth=truth,
        mask={s: t > -0.5 for s, t in truth.items()},
        coords=dict.fromkeys(slides, XY),
        neighbors=dict.fromkeys(slides, NEAR),
        patients=dict.fromkeys(slides),
    )


def predicted(skill: float, seed: int, *slides: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {s: (skill * truth_of(s) + rng.normal(size=(len(XY), len(GENES)))).astype(np.float32) for s in slides}


@cache
def results() -> tuple[Result, ...]:
    found = []
    for i, (head, skills) in enumerate(SKILL.items()):
        for target, skill in zip(("log1p", "d_log1p"), skills, strict=True):
            scores = score_cell([held_out("a", "b")], [predicted(skill, i, "a", "b")], n_resamples=RESAMPLES)
            label, layer = LABELS.get(head, ""), "log1p"
            pixels = "ridge; the original reads pixels" if head == "sepal" else ""
            cell = Result(
                "C", "enc", head, "{}", None, label, target, layer, layer, "all", scores, f"{i}{target}", pixels
            )
            found.append(cell)
            if target != "log1p":
                found.append(cell._replace(scored_on=target))
    return tuple(found)


def test_scores_are_those_of_the_metrics_and_the_intervals():
    fold, guess = held_out("a", "b"), predicted(0.5, 3, "a", "b")
    coords = dict(fold.coords)
    for which in ("all", "measured"):
        scores = score_cell([fold], [guess], which=which, n_resamples=RESAMPLES)
        [pooled, *_] = score_slides(fold.truth, guess, mask=fold.mask, which=which)
        shape = structure(fold.truth, guess, fold.neighbors, mask=fold.mask, which=which)[0]
        for key, value in scores.numbers.items():
            assert value == pytest.approx((pooled | shape)[key], rel=1e-9), key
        rows = intervals(fold.truth, guess, coords=coords, mask=fold.mask, which=which, n_resamples=RESAMPLES)
        for row in rows:
            if row["over"] == "pooled" and row["metric"] in scores.drawn:
                assert scores.interval(row["metric"]) == pytest.approx((row["estimate"], row["low"], row["high"]))
        assert (scores.unit, scores.n_units) == (rows[0]["unit"], rows[0]["n_units"])
    whole = [np.concatenate(list(of.values())) for of in (fold.truth, guess, fold.mask)]
    compat = score_cell([fold], [guess], which="measured", compat=True, n_resamples=RESAMPLES).numbers
    theirs = get_metrics(*whole)
    assert compat["r2_patch"] == pytest.approx(theirs["R2-Patch"])
    assert compat["pcc_gene"] == pytest.approx(theirs["PCC-Gene"])
    for values in guess.values():
        values[:, 0] = 1.0  # SpaRED's rule: a gene predicted constant over all spots leaves no PCC-Gene
    flat = score_cell([fold], [guess], which="measured", compat=True, n_resamples=RESAMPLES)
    assert math.isnan(flat.numbers["pcc_gene"])
    assert math.isfinite(flat.interval("pcc_gene")[0])


def test_a_difference_is_the_paired_one():
    fold, first, second = held_out("a", "b"), predicted(0.6, 1, "a", "b"), predicted(0.5, 2, "a", "b")
    ours = [score_cell([fold], [one], n_resamples=RESAMPLES) for one in (first, second)]
    rows = paired_intervals(fold.truth, first, second, coords=fold.coords, n_resamples=RESAMPLES)
    for row in rows:
        if row["over"] == "pooled" and row["metric"] in ("pcc_gene", "mse"):
            found = difference([tuple(ours)], row["metric"])
            assert found[:3] == pytest.approx((row["estimate"], row["low"], row["high"]))
            assert found.unit == "spatial block"


def test_spots_without_a_patch_are_left_out_and_other_spots_do_not_compare():
    fold, guess = held_out("a", "b"), predicted(0.6, 1, "a", "b")
    holed = {s: v.copy() for s, v in guess.items()}
    holed["b"][[3, 77]] = np.nan
    whole, less = (score_cell([fold], [one], n_resamples=RESAMPLES) for one in (guess, holed))
    assert (whole.numbers["n_spots"], less.numbers["n_spots"]) == (288, 286)
    kept = {s: np.isfinite(v).all(axis=1) for s, v in holed.items()}
    number = {s: {int(row): i for i, row in enumerate(np.flatnonzero(of))} for s, of in kept.items()}
    near = {s: np.array([[number[s].get(int(n), -1) for n in row] for row in NEAR[of]]) for s, of in kept.items()}
    cut = [{s: values[s][of] for s, of in kept.items()} for values in (fold.truth, holed)]
    assert less.numbers["moran_recovered"] == pytest.approx(structure(*cut, near)[0]["moran_recovered"])
    assert difference([(whole, less)], "mse") is None
    assert difference([(less, less)], "mse").estimate == 0


def test_folds_are_averaged_and_drawn_where_there_are_five():
    slides = "abcde"
    folds = [held_out(s) for s in slides]
    guesses = [predicted(0.5, i, s) for i, s in enumerate(slides)]
    few, many = (score_cell(folds[:n], guesses[:n], n_resamples=RESAMPLES) for n in (2, 5))
    each = [score_slides(f.truth, g)[0]["pcc_gene"] for f, g in zip(folds, guesses, strict=True)]
    assert few.numbers["pcc_gene"] == pytest.approx(np.mean(each[:2]))
    assert few.interval("pcc_gene")[0] == pytest.approx(np.mean(each[:2]))
    assert many.interval("pcc_gene")[0] == pytest.approx(np.mean(each))
    assert (few.unit, many.unit, many.n_units) == ("spatial block", "fold", 5)
    assert many.drawn["pcc_gene"][1:].min() >= min(each) - 1e-12
    assert set(many.genes) == set(GENES)


@pytest.mark.parametrize(
    ("low", "high", "pcc", "mse"),
    [
        (0.01, 0.02, HELPS, HURTS),
        (-0.02, -0.01, HURTS, HELPS),
        (-0.001, 0.5, OPEN, OPEN),
        (math.nan, math.nan, OPEN, OPEN),
    ],
)
def test_the_interval_alone_decides(low: float, high: float, pcc: str, mse: str):
    found = Difference(0.4, low, high, "patient", 6)
    answer = Answer("graph", "C", "t", "all", "t", "e", "sepal", "ridge", 1, {"pcc_gene": found, "mse": found})
    assert (answer.verdict("pcc_gene"), answer.verdict("mse")) == (pcc, mse)
    json.dumps(answer.plain(), allow_nan=False)


def test_questions_are_answered_by_the_cells_that_differ_in_this_alone():
    found = {(one.mean.question, one.mean.target): one for one in answers(results(), entries=("all",))}
    assert set(found) == {("completion", "d_log1p")} | {
        (question, target) for question in ("graph", "retrieval", "context") for target in ("log1p", "d_log1p")
    }
    completion = found["completion", "d_log1p"]
    verdicts = {head.head: head.verdict("pcc_gene") for head in completion.heads}
    assert verdicts == {
        "ridge": HELPS,
        "knn": OPEN,
        "sepal (small)": HURTS,
        "context-ridge": OPEN,
    }  # no floor among them
    assert completion.counts("pcc_gene") == {HELPS: 1, HURTS: 1, OPEN: 2}
    mean = np.mean([head.differences["mse"].estimate for head in completion.heads])
    assert completion.mean.differences["mse"].estimate == pytest.approx(mean)
    assert completion.mean.scored_on == "log1p"
    assert [head.head for head in found["graph", "log1p"].heads] == ["sepal (small)"]
    assert found["graph", "log1p"].mean.verdict("pcc_gene") == HELPS
    assert found["retrieval", "log1p"].mean.verdict("pcc_gene") == HURTS
    assert found["context", "d_log1p"].heads[0].versus == "ridge"
    assert found["context", "d_log1p"].mean.verdict("pcc_gene") == HURTS
    assert sentence(completion).startswith("C, all entries: ")
    assert "Head by head: helps 1, hurts 1, 2 can't tell." in sentence(completion)


def test_partners_are_sought_by_encoder_parameters_and_seed():
    base = next(r for r in results() if r.head == "ridge" and r.target == "log1p")
    for encoder in ("tokens/enc", "enc+b", "tokens/enc+b"):
        knn = base._replace(head="knn", encoder=encoder)
        assert [h.versus for one in answers([knn, base], entries=("all",)) for h in one.heads] == ["ridge on enc"]
    assert answers([knn, base._replace(encoder="other")], entries=("all",)) == []
    done = base._replace(target="d_log1p", params='{"a":1}')
    assert answers([base, done], entries=("all",)) == []  # other parameters: no pair
    seeds = [base._replace(head="mlp", seed=s, target=t) for s in (0, 1) for t in ("log1p", "d_log1p")]
    [found] = answers(seeds, entries=("all",))
    assert [head.head for head in found.heads] == ["mlp, seed 0", "mlp, seed 1"]
    assert against_ridge(base, [base]) is None
    assert shown(base._replace(head="gene-mean"), []) == "gene-mean (floor)"


def page_of(tmp_path: Any, **more: Any) -> Page:
    fold, guess = held_out("a", "b"), predicted(0.6, 0, "a", "b")
    found = results()
    best = next(r for r in found if r.head == "sepal")
    ranges = gene_ranges([fold], [guess], best.scores.genes, which="all", n_resamples=RESAMPLES)
    picture = np.full((60, 60, 3), 230, np.uint8)
    panels = {"truth (log1p)": fold.truth["a"][:, 0], "predicted": guess["a"][:, 0]}
    overlay = Overlay("a", "GENE0", picture, XY * 5 + 2, 4.0, panels, "Best gene", "log₂(1 + TPM)", {"predicted": 0.5})
    sections = [
        Section(
            "C",
            target,
            "2 held-out slides",
            [r for r in found if r.target == target],
            [
                {"cell": r.cell, "slide": s, "score": "all", "pcc_gene": 0.25, "mse": None if s == "b" else 1.5}
                for r in found
                for s in "ab"
            ],
            plot=GenePlot("enc + sepal", ranges, "enc + ridge", best.scores.genes),
            strips=Strips([(r.head, r.scores.genes) for r in ranked(found)[:4]]),
            maps=[GeneMap(overlay, "truth (log1p)", "predicted")],
        )
        for target in ("log1p", "d_log1p")
    ]
    given: dict[str, Any] = {
        "title": "T",
        "notice": "SYNTHETIC",
        "facts": {"Protocol": "strict"},
        "findings": answers(found, entries=("all",)),
        "sections": sections,
        "gates": [
            {
                "cohort": "C",
                "encoder": "enc",
                "best": "sepal, log1p",
                "pcc_gene": 0.5,
                "factor": "slide",
                "held_out": "block",
                "logistic": 0.9,
                "knn": 0.8,
                "chance": 0.5,
                "n_classes": 2,
            },
            {"cohort": "C", "encoder": "tokens/enc", "best": None, "pcc_gene": None, "why": "not probed"},
        ],
        "missing": [
            {
                "cohort": "C",
                "encoder": "enc",
                "head": "pixnet",
                "target": "log1p",
                "status": "skipped",
                "reason": "needs tokens",
            }
        ],
    }
    write_matrix_page(tmp_path / "r.html", **(given | more))
    return Page((tmp_path / "r.html").read_text(encoding="utf-8"))


def test_the_page_says_it_all_by_itself(tmp_path: Any):
    page = page_of(tmp_path)
    assert page.text[0] == "SYNTHETIC"
    assert not page.all("script")
    assert not page.all("link")
    links = [a[k] for _, a in page.tags for k in ("src", "href") if k in a]
    assert all(link.startswith(("data:image/", "#")) for link in links)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    text = " ".join(page.text)
    for said in ("needs tokens", "not probed", "sepal (small)", "slide-mean (oracle)", "gene-mean (floor)", "log₂(1 + TPM)",
                 "spatial block", "MSE below it", "predicted less truth (log1p)", "Scored on log1p, the raw layer"):  # fmt: skip
        assert said in text, said
    assert "sepal (small) ridge; the original reads pixels" in text
    assert text.index("What was found") < text.index("Head by head") < text.index("published, not measured here")
    assert HELPS in page.text
    assert HURTS in page.text


def test_floors_are_never_best_and_stand_last(tmp_path: Any):
    found = [r for r in results() if r.target == r.scored_on == "log1p"]
    order = [r.head for r in ranked(found)]
    assert order[-2:] == ["slide-mean", "gene-mean"]  # though the oracle scores highest
    assert order[0] == "sepal"
    page = page_of(tmp_path, sections=[Section("C", "log1p", "", found)], findings=[], gates=[], missing=[])
    best = {f"{r.scores.numbers['pcc_gene']:.3f}" for r in found if r.head == "sepal"}
    oracle = {f"{r.scores.numbers['pcc_gene']:.3f}" for r in found if r.head == "slide-mean"}
    assert best <= set(page.bold)
    assert not oracle & set(page.bold)
    assert "Not asked: no two cells of this benchmark differ in this alone." in page.text


def test_every_string_is_escaped(tmp_path: Any):
    evil = "<script>alert(1)</script>"
    found = [r._replace(cohort=evil, encoder=evil, label=evil, params=evil) for r in results()]
    section = Section(evil, evil, evil, found, strips=Strips([(evil, found[0].scores.genes)]))
    missing = [dict.fromkeys(("cohort", "encoder", "head", "target", "status", "reason"), evil)]
    page = page_of(
        tmp_path, title=evil, notice=evil, facts={evil: evil}, sections=[section], missing=missing,
        findings=answers(found, entries=("all",)),
    )  # fmt: skip
    assert not page.all("script")
    assert evil in page.text


def test_published_figures_are_apart_and_add_up():
    spared, hest = published()
    assert (len(spared["rows"]), len(spared["columns"])) == (26, 10)
    pcc = [[cell[0] for row in spared["rows"] if (cell := row[1 + i])] for i in range(10)]
    assert [len(column) for column in pcc] == [26] * 8 + [25, 2]
    assert np.mean(pcc[0]) == pytest.approx(0.344, abs=5e-4)
    assert np.mean(pcc[6]) == pytest.approx(0.392, abs=5e-4)
    for name, *tasks, average in hest["rows"]:
        assert np.mean(tasks) == pytest.approx(average[0], abs=1.1e-3), name
    for table in (spared, hest):
        assert table["source"]
        assert table["as_of"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"]) + 1}


def test_drawings_of_genes():
    plot = GenePlot(
        "one", {"A": (0.2, 0.1, 0.3), "B": (0.5, math.nan, math.nan), "C": (math.nan,) * 3}, "two", {"A": 0.3}
    )
    found = gene_plot(plot)
    assert [mark["gene"] for mark in found["marks"]] == ["B", "A"]
    assert [bool(mark["range"]) for mark in found["marks"]] == [False, True]
    assert (found["better"], found["compared"]) == (0, 1)
    assert float(found["marks"][0]["y"]) < float(found["marks"][1]["y"])
    assert gene_plot(GenePlot("one", {"C": (math.nan,) * 3}, "", {})) is None
    shown_rows = strips(Strips([("one", {"A": 0.1, "B": math.nan}), ("two", {"A": 0.4, "B": 0.6})]))
    assert [row["mean"] for row in shown_rows["rows"]] == ["0.10", "0.50"]
    assert strips(Strips([])) is None


def test_a_map_is_cut_to_its_spots_and_shows_the_difference():
    picture = np.full((200, 300, 3), 255, np.uint8)
    xy = np.array([[100.0, 50], [120, 50], [140, 60]])
    panels = {"t": np.array([1.0, 2, 3]), "p": np.array([3.0, 2, 1])}
    found = gene_map(GeneMap(Overlay("s", "G", picture, xy, 5.0, panels, ""), "t", "p"), {})
    assert (found["width"], found["height"]) == (60, 30)
    low, right, high = (colour for colour, _ in found["difference"]["dots"])
    assert (low, high) == (TURNING[0], TURNING[-1])
    assert right in TURNING[22:26]
    assert found["difference"]["dots"][2][1] == "M10.0 10.0h0"  # predicted too high: the first spot
