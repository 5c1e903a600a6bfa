"""The page in a real headless Chromium: what a reader does with mouse and keyboard, and what they see."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import spared_fm
from spared_fm.study.api import Study
from tests.explore.browser import Looking, start_browser, start_server

pytestmark = pytest.mark.full

ENCODER = "stain-bank"
BREAST = ("her2st_C2", "her2st_C3")
BULB = ("mob_rep1", "mob_rep12")
PARTS = dict.fromkeys(BREAST + BULB, "train") | {"her2st_C3": "test"}
SPOT = "C2_18x22"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the screenshots: SPARED_SHOTS, to keep them."""
    folder = Path(os.environ["SPARED_SHOTS"]) if "SPARED_SHOTS" in os.environ else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[str]:
    study = spared_fm.open(tmp_path_factory.mktemp("real") / "breast-and-bulb", create=True)
    for slide in (*BREAST, *BULB):
        study.ingest(shared_data / slide, patient="C" if slide in BREAST else slide, split=PARTS[slide])
    study.encode(ENCODER, threads=1)
    study.cohort("her2st", slides=list(BREAST), n_genes=24, panel="variance")
    study.complete("her2st")
    study.complete("her2st", method="low-rank-gaussian")  # one that says how sure it is
    with start_server(study.layout.root) as address:
        yield address


@pytest.fixture(scope="module")
def synthetic(shown: Study) -> Iterator[str]:
    with start_server(shown.layout.root) as address:
        yield address


@pytest.fixture
def look(browser: Any, shots: Path) -> Iterator[Any]:
    """Open a page at an address; nothing it does may be complained of, or go elsewhere."""
    made: list[Looking] = []

    def start(address: str, **options: Any) -> Looking:
        page = browser.new_page(viewport={"width": 1440, "height": 900}, **options)
        made.append(Looking(page, address, shots))
        return made[-1]

    yield start
    for looking in made:
        looking.close()


def test_a_real_slide_a_gene_a_spot_and_its_neighbours_elsewhere(look, real):
    at = look(real)
    at.open("slide=her2st_C2")
    at.shot("01-slide")
    at.page.select_option("#view-a .what", "gene")
    at.page.fill("#view-a .gene", "erbb2")
    at.page.press("#view-a .gene", "Enter")
    at.settle()
    assert at.state()["gene"] == "ERBB2"
    legend = at.page.locator("#view-a .legend")
    assert "ERBB2" in legend.inner_text()
    assert "counts" in legend.inner_text()
    at.page.mouse.click(*at.place("her2st_C2", SPOT))
    at.settle()
    assert at.state()["query"] == f"spot:her2st_C2/{SPOT}"
    found = at.results()
    assert len(found) == 10
    assert not [spot for spot in found if spot.startswith("her2st_C2/")]
    assert [spot for spot in found if spot.startswith("her2st_C3/")]
    assert "ERBB2" in at.page.locator("#results > li").first.inner_text()
    assert "mean" in at.page.locator("#expression-summary").inner_text()
    pictures = at.page.locator("#results img").evaluate_all("all => all.slice(0, 4).map(one => one.naturalWidth)")
    assert min(pictures) > 0
    at.shot("02-neighbours")
    breast = next(i for i, spot in enumerate(found) if spot.startswith("her2st_C3/"))
    at.page.locator("#results > li").nth(breast).get_by_role("button", name="beside").click()
    at.settle()
    assert at.state()["b.slide"] == "her2st_C3"
    shown = at.page.locator(".view .spots").evaluate_all("all => all.map((one) => one.style.opacity)")
    assert shown == ["0.85", "0.85"]
    at.shot("03-beside")


def test_layers_differences_and_uncertainty_share_one_scale(look, real):
    at = look(real)
    layers = {one["label"]: one["layer"] for one in at.get("/api/slides/her2st_C2")["layers"]}
    gene = at.get(f"/api/genes?slide=her2st_C2&layer={layers['lognorm (her2st)']}")["genes"][0]
    completed = next(layer for layer in layers.values() if layer.endswith("d_lognorm"))
    one = f"slide=her2st_C2&colour=gene&gene={gene}&layer=cohort:her2st/lognorm"
    at.open(f"{one}&split=1&b.slide=her2st_C2&b.colour=gene&b.gene={gene}&b.layer={completed}")
    ticks = [at.page.locator(f"#view-{name} .ticks").inner_text().replace("≤ ", "").replace("≥ ", "") for name in "ab"]
    assert ticks[0] == ticks[1]
    at.page.uncheck("#same")
    at.shot("04-layers")
    at.page.select_option("#view-b .minus", "cohort:her2st/lognorm")
    at.settle()
    low, middle, high = at.page.locator("#view-b .ticks span").all_inner_texts()
    assert middle == "0"
    assert low.strip("≤ ").lstrip("−") == high.strip("≥ ")
    at.shot("05-difference")
    sure = layers["lr_lognorm (her2st)"]
    at.open(f"{one}&split=1&b.slide=her2st_C2&b.colour=gene&b.gene={gene}&b.layer={sure}")
    at.page.select_option("#view-b .minus", "uncertainty")
    at.settle()
    assert not at.page.locator("#view-b .problem").is_visible()
    values = at.get(f"/api/slides/her2st_C2/values?what=gene:{gene}&layer={sure}_spread")["values"]
    known = sorted(value for value in values if value is not None)
    assert known[0] == 0 < known[-1]  # what was measured is sure
    assert at.page.locator("#view-b .ticks").inner_text().startswith("0")
    at.shot("05-uncertainty")


def test_a_region_and_the_two_views_move_together(look, real):
    at = look(real)
    at.open("slide=her2st_C2&split=1&b.slide=her2st_C2&colour=none&b.colour=none")
    at.page.click("#view-a .draw")
    x, y = at.place("her2st_C2", SPOT)
    at.page.mouse.move(x - 40, y - 40)
    at.page.mouse.down()
    at.page.mouse.move(x + 20, y + 20)
    at.page.mouse.move(x + 40, y + 40)
    at.page.mouse.up()
    at.settle()
    assert at.state()["query"].startswith("region:her2st_C2:")
    assert "the mean of" in at.page.locator("#search-summary").inner_text()
    before = at.page.locator("#view-b .scale-bar span").inner_text()
    at.page.focus("#view-b .picture")
    for _ in range(4):
        at.page.keyboard.press("+")
    at.page.keyboard.press("ArrowRight")
    at.settle()
    after = [at.page.locator(f"#view-{name} .scale-bar span").inner_text() for name in "ab"]
    assert after[0] == after[1] != before
    boxes = [at.page.locator(f"#view-{name} .overview i").get_attribute("style") for name in "ab"]
    assert boxes[0] == boxes[1]
    at.shot("06-region-linked")


def test_a_crop_finds_the_tissue_it_was_cut_from(look, real, shared_data, tmp_path):
    at = look(real)
    spots = at.get("/api/slides/mob_rep12/spots")
    where, side = 100, round(112 / spots["mpp"])
    left, top = round(spots["x"][where] - side / 2), round(spots["y"][where] - side / 2)
    with Image.open(shared_data / "mob_rep12" / "image.jpg") as whole:
        whole.crop((left, top, left + side, top + side)).save(tmp_path / "crop.png")
    at.open("slide=her2st_C2&colour=none")
    at.page.click("#open-upload")
    at.page.click("#upload-go")
    assert "Choose a picture" in at.page.locator("#upload-error").inner_text()
    at.page.set_input_files("#upload-file", tmp_path / "crop.png")
    at.page.fill("#upload-mpp", str(spots["mpp"]))
    at.shot("07-upload")
    at.page.click("#upload-go")
    at.page.wait_for_selector("#upload", state="hidden")
    at.settle()
    assert at.results()[0] == f"mob_rep12/{spots['ids'][where]}"
    assert "crop.png" in at.page.locator("#query").inner_text()
    at.shot("08-uploaded")
    (tmp_path / "not.png").write_bytes(b"no picture")
    at.page.click("#open-upload")
    at.page.set_input_files("#upload-file", tmp_path / "not.png")
    at.page.click("#upload-go")
    at.page.wait_for_selector("#upload-error:not([hidden])")
    at.complaints[:] = [said for said in at.complaints if "status of 4" not in said]


def test_annotation_clusters_and_directions_of_an_embedding(look, real):
    at = look(real)
    at.open("slide=mob_rep1")
    assert at.state()["colour"] == "obs:annotation"
    groups = at.page.locator("#view-a .categories button")
    assert groups.count() > 2
    groups.first.click()
    assert at.page.locator("#view-a .categories button").first.get_attribute("aria-pressed") == "true"
    at.shot("09-annotation")
    at.page.select_option("#view-a .what", f"cluster:{ENCODER}")
    at.settle()
    at.page.fill("#view-a .k", "5")
    at.page.press("#view-a .k", "Enter")
    at.settle()
    assert at.page.locator("#view-a .categories button").count() == 5
    at.page.select_option("#view-a .what", f"pca:{ENCODER}")
    at.settle()
    assert "principal components" in at.page.locator("#view-a .legend").inner_text()
    at.shot("10-directions")


def test_by_keyboard_alone(look, synthetic):
    at = look(synthetic)
    at.open()
    at.page.keyboard.press("Tab")
    at.page.keyboard.press("Enter")  # skip to the slide
    assert at.page.evaluate("document.activeElement.className") == "picture"
    start = at.state()["at"]
    at.press("ArrowRight", moves="at")
    at.press("+", moves="at")
    x, _, zoom = map(float, at.state()["at"].split(","))
    assert x > float(start.split(",")[0])
    assert zoom > 1.2 * float(start.split(",")[2])
    at.press("n", moves="query")
    at.press("n", moves="query")
    at.settle()
    slide = at.page.locator("#view-a .slide").input_value()
    spots = at.get(f"/api/slides/{slide}/spots")
    assert at.state()["query"] == f"spot:{slide}/{spots['ids'][1]}"
    assert at.results()
    assert at.page.locator("#said").inner_text()
    at.press("Shift+ArrowDown", moves="query")
    below = spots["ids"].index(at.state()["query"].split("/")[1])
    assert spots["y"][below] > spots["y"][1]
    at.press("Escape", moves="query")
    assert "query" not in at.state()
    assert not at.results()
    at.page.keyboard.press("0")
    reached = set()
    at.page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        at.page.keyboard.press("Tab")
        reached.add(at.page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {
        "split",
        "open-upload",
        "opacity",
        "map",
        "slide",
        "what",
        "picture",
        "in",
        "draw",
        "spot-id",
        "next",
        "encoder",
        "results-k",
    } <= reached


def test_the_address_brings_everything_back(look, synthetic):
    at = look(synthetic)
    slides = [one["slide"] for one in at.get("/api/slides")["slides"]]
    at.open(
        f"slide={slides[0]}&colour=pca:{ENCODER}&opacity=0.5&map=cividis&n=5&exclude=none&split=1&b.slide={slides[1]}&b.colour=none"
    )
    at.page.keyboard.press("Tab")
    at.page.focus("#view-a .picture")
    at.press("n", moves="query")
    at.press("Enter", moves="at")
    at.settle()
    before, found = at.state(), at.results()
    assert len(found) == 5
    at.open(at.page.url.split("#")[1])
    assert at.results() == found
    again = at.state()
    assert {**again, "at": ""} == {**before, "at": ""}
    for now, then in zip(again["at"].split(","), before["at"].split(","), strict=True):
        assert float(now) == pytest.approx(float(then), rel=0.01)


def test_failures_are_told_in_words(look, synthetic):
    at = look(synthetic)
    slide = at.get("/api/slides")["slides"][0]["slide"]
    at.open(f"slide={slide}&colour=gene&gene=NOT-A-GENE")
    assert "NOT-A-GENE" in at.page.locator("#view-a .problem").inner_text()
    at.shot("11-problem")
    at.open("slide=nowhere&size=wide&at=1,2&query=region:x&n=-4")
    assert "nowhere" in at.page.locator("#view-a .problem").inner_text()
    at.open(f"slide={slide}&colour=none")
    at.page.route("**/api/search", lambda route: route.abort())
    at.page.focus("#view-a .picture")
    at.page.keyboard.press("n")
    at.page.wait_for_selector("#search-error:not([hidden])")
    assert "still running" in at.page.locator("#search-error").inner_text()
    at.complaints.clear()  # the browser logs each refusal


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(look, synthetic, scheme):
    from axe_playwright_python.sync_playwright import Axe

    at = look(synthetic, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)  # axe is put in as a script

    def check(what: str) -> None:
        found = Axe().run(at.page).response["violations"]
        rules = [(rule["id"], rule["impact"], [node["html"][:120] for node in rule["nodes"]]) for rule in found]
        assert not rules, (what, rules)

    at.open()
    check("slide")
    slide = at.page.locator("#view-a .slide").input_value()
    gene = at.get(f"/api/genes?slide={slide}&layer=counts")["genes"][0]
    at.open(f"slide={slide}&colour=gene&gene={gene}&split=1")
    at.page.focus("#view-a .picture")
    at.page.keyboard.press("n")
    at.settle()
    at.page.click("#within summary")
    check("results")
    at.shot(f"12-{scheme}")
    for name in ("open-upload", "open-help"):
        at.page.click(f"#{name}")
        check(name)
        at.page.keyboard.press("Escape")
    at.open(f"slide={slide}&colour=gene&gene=NOT-A-GENE")
    check("problem")
    at.complaints[:] = [said for said in at.complaints if not re.search("status of 4|Content Security", said)]


PAN = """async () => {
  const box = document.querySelector(".picture").getBoundingClientRect();
  const target = document.querySelector(".openseadragon-canvas");
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  const fire = (type, dx, dy, buttons) => target.dispatchEvent(new PointerEvent(type, {bubbles: true, cancelable: true,
    pointerId: 1, pointerType: "mouse", isPrimary: true, clientX: x + dx, clientY: y + dy,
    button: type === "pointermove" ? -1 : 0, buttons}));
  for (const [type, buttons] of [["pointerover", 0], ["pointerenter", 0], ["pointerdown", 1]]) fire(type, 0, 0, buttons);
  const times = [];
  await new Promise((done) => {
    const step = (now) => {
      times.push(now);
      const t = (now - times[0]) / 1000;
      fire("pointermove", 0.35 * box.width * Math.sin(2.1 * t), 0.3 * box.height * (Math.cos(1.7 * t) - 1), 1);
      if (t < 4) requestAnimationFrame(step);
      else done();
    };
    requestAnimationFrame(step);
  });
  fire("pointerup", 0, 0, 0);
  return 1000 * (times.length - 1) / (times.at(-1) - times[0]);
}"""


@pytest.mark.parametrize("steps", [0, 4])
def test_ten_thousand_spots_pan_at_thirty_frames_a_second(look, real, steps):
    """The picture is real; the spots and their values are made up here."""
    at = look(real)
    slide, side = at.get("/api/slides/her2st_C2"), 100
    xs = [(i % side + 0.5) * slide["width"] / side for i in range(side**2)]
    ys = [(i // side + 0.5) * slide["height"] / side for i in range(side**2)]
    values = [i % 997 / 997 for i in range(side**2)]
    spots = {
        "slide": "her2st_C2",
        "spot_diameter": 60,
        "mpp": slide["mpp"],
        "ids": [f"s{i}" for i in range(side**2)],
        "x": xs,
        "y": ys,
    }
    scale = {
        "kind": "number",
        "label": "made up",
        "unit": None,
        "diverging": False,
        "min": 0,
        "max": 1,
        "low": 0,
        "high": 1,
    }
    at.page.route("**/spots", lambda route: route.fulfill(json=spots))
    at.page.route("**/values?*", lambda route: route.fulfill(json={**scale, "values": values}))
    at.open("slide=her2st_C2&colour=gene&gene=x")
    at.page.focus("#view-a .picture")
    for _ in range(steps):
        at.page.keyboard.press("+")
    at.settle()
    rates = [at.page.evaluate(PAN) for _ in range(2)]
    at.shot(f"13-ten-thousand-{steps}")
    assert max(rates) >= 30, rates


def test_the_first_paint_of_a_real_slide_takes_less_than_two_seconds(look, real):
    at = look(real)
    marks = {}
    for slide in (*BREAST, *BULB):
        at.open(f"slide={slide}")
        found = at.page.evaluate("performance.getEntriesByType('mark').map((mark) => [mark.name, mark.startTime])")
        marks[slide] = dict(found)
    assert max(found["slide drawn"] for found in marks.values()) < 2000, marks
