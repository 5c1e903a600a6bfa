// The page: wires the views, the slide list, the search and the address to one state.

import * as api from "./api.js";
import { range } from "./colour.js";
import { announce, count, debounce, el, fillSelect } from "./dom.js";
import { Link } from "./link.js";
import { Pane } from "./pane.js";
import { SearchPanel } from "./search.js";
import { fromHash, toHash } from "./state.js";
import { uploadDialog } from "./upload.js";

const byId = (id) => document.getElementById(id);

let state = fromHash(location.hash);
let store = null;
let panel = null;
let results = [];
let active = null;
const panes = {};
const link = new Link();
let restored = false; // the address's own camera has been taken

const both = () => Object.values(panes).filter((pane) => state.split || pane === panes.a);
const save = debounce(() => {
  const hash = `#${toHash(state)}`;
  if (hash !== location.hash) history.replaceState(null, "", hash);
}, 250);
const searchSoon = debounce(() => panel.run(), 120);

function paintAll() {
  const answers = both().map(({ answer }) => answer);
  const comparable =
    state.split && answers.length === 2 && answers.every((one) => one && one.kind === "number") &&
    answers[0].unit === answers[1].unit && answers[0].diverging === answers[1].diverging;
  byId("same-field").hidden = !comparable;
  const ranges = comparable && state.same ? answers.map((one) => range(one, state.full)) : null;
  const shared = ranges && [Math.min(...ranges.map(([low]) => low)), Math.max(...ranges.map(([, high]) => high))];
  for (const pane of both()) pane.paint(state, shared);
}

/** Rings on the query, its region, and on results that lie on the slide of each view. */
function mark() {
  for (const pane of both()) {
    if (!pane.info || !pane.view.spots) continue;
    const { slide } = pane.info;
    const marks = results
      .filter((one) => one.slide === slide && one.x !== null)
      .map((one) => ({ x: one.x, y: one.y, kind: "result", text: String(one.rank) }));
    const { query } = state;
    if (query?.region?.slide === slide) marks.unshift({ ...query.region, kind: "region" });
    const spot = pane.spot(pane.chosen);
    if (spot && !Number.isNaN(spot.x)) marks.push({ x: spot.x, y: spot.y, kind: query?.spot === spot.id ? "query" : "shown" });
    pane.view.setMarks(marks);
  }
}

function ask(query, said = "") {
  state.query = query;
  results = [];
  panel.showQuery(said);
  mark();
  save();
  searchSoon();
}

function clear() {
  state.query = null;
  results = [];
  for (const pane of both()) pane.chosen = -1;
  panel.clear();
  mark();
  save();
  announce("Cleared");
}

function pick(pane, index, byKey = false) {
  const spot = pane.spot(index);
  if (!spot) return;
  pane.chosen = index;
  pane.find(".spot-id").value = spot.barcode;
  pane.find(".spot-id").removeAttribute("aria-invalid");
  if (byKey && !Number.isNaN(spot.x)) pane.view.keepInSight(spot.x, spot.y);
  if (byKey) announce(`Spot ${spot.barcode}. ${spot.said}`);
  if (state.encoder) ask({ spot: spot.id }, spot.said);
  else mark();
}

/** Go to a result: in the other view where there are two (or `beside` asks for it), else in this one. */
async function show(result, beside) {
  if (beside && !state.split) await setSplit(true);
  const queried = state.query?.spot ? panes.a.indexOf(state.query.spot) >= 0 : state.query?.region?.slide === panes.a.info?.slide;
  const pane = state.split ? (queried || active !== panes.b ? panes.b : panes.a) : panes.a;
  link.pause();
  if (pane.settings.slide !== result.slide) await choose(pane, result.slide);
  const index = pane.indexOf(result.spot);
  if (index < 0) return;
  pane.chosen = index;
  const other = state.split ? both().find((one) => one !== pane) : null;
  const spot = pane.spot(index);
  pane.view.show(spot.x, spot.y, true);
  const query = other && state.query?.spot ? other.spot(other.indexOf(state.query.spot)) : null;
  if (query) other.view.show(query.x, query.y, true); // the two patches face each other, and move together from here
  link.tie(panes, state);
  mark();
  announce(`Result ${result.rank}: ${result.spot}`);
}

function showList(filter = "") {
  const wanted = filter.toLowerCase();
  const fits = ({ slide, patient }) => `${slide} ${patient ?? ""}`.toLowerCase().includes(wanted);
  const row = (one) => {
    const picture = one.image === "patches" || one.image === null
      ? el("span", { class: "thumb none" })
      : el("img", { class: "thumb", src: api.thumbnailUrl(one.slide, 96), alt: "", loading: "lazy", width: 46, height: 46 });
    picture.addEventListener("error", () => picture.classList.add("none"));
    const details = [one.patient && one.patient !== one.slide ? `patient ${one.patient}` : null, count(one.spots, "spot")];
    return el("li", {}, el("button", { type: "button", "data-slide": one.slide, onclick: () => choose(active ?? panes.a, one.slide) },
      picture, el("span", {}, el("strong", {}, one.slide), el("span", { class: "soft" }, details.filter(Boolean).join(" · ")))));
  };
  const shown = store.slides.filter(fits);
  byId("slide-list").replaceChildren(...shown.map(row));
  if (!shown.length) byId("slide-list").append(el("li", { class: "empty" }, store.slides.length ? "No slide has this name." : "No slides in this store yet: run “spared-fm ingest”."));
  showCurrent();
}

function showCurrent() {
  const current = active?.settings.slide;
  for (const button of byId("slide-list").querySelectorAll("button")) {
    if (button.dataset.slide === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  for (const pane of Object.values(panes)) pane.section.classList.toggle("active", state.split && pane === active);
}

async function choose(pane, slide) {
  pane.settings.slide = slide;
  showCurrent();
  save();
  await pane.load();
}

async function setSplit(on) {
  state.split = on;
  document.body.classList.toggle("split", on);
  byId("split").setAttribute("aria-pressed", String(on));
  byId("linked").hidden = !on;
  if (on && !panes.b) makePane("b");
  if (panes.b) panes.b.section.hidden = !on;
  if (!on) active = panes.a;
  if (on && !store.slides.some(({ slide }) => slide === state.b.slide)) Object.assign(state.b, state.a);
  save();
  showCurrent();
  if (on) await panes.b.load();
  paintAll();
  mark();
}

function makePane(name) {
  panes[name] = new Pane(name, state[name], {
    active(pane) {
      link.lead = pane;
      if (active === pane) return;
      active = pane;
      showCurrent();
    },
    camera(pane) {
      if (state.split && state.linked) link.follow(pane, panes);
      if (pane === panes.a) {
        state.at = pane.view.camera() ?? state.at;
        save();
      }
    },
    pick,
    region(pane, { x, y, width, height }) {
      pane.drawRegion(false);
      pane.chosen = -1;
      ask({ region: { slide: pane.info.slide, x, y, width, height } });
    },
    clear,
    choose,
    opened(pane) {
      if (pane === panes.a && state.at && !restored) pane.view.setCamera(state.at, true);
      else pane.view.fitSpots();
      if (pane === panes.a) restored = true;
      if (state.split && panes.b?.info && panes.a.info) {
        if (panes.a.info.slide === panes.b.info.slide && pane === panes.b) pane.view.setCamera(panes.a.view.camera(), true);
        link.tie(panes, state);
      }
      if (state.query?.spot) pane.chosen = pane.indexOf(state.query.spot);
      mark();
    },
    coloured() {
      paintAll();
      save();
      const spot = state.query?.spot ? both().map((one) => one.spot(one.indexOf(state.query.spot))).find(Boolean) : null;
      panel.showQuery(spot?.said);
    },
    async changed(pane) {
      save();
      if ((await pane.load()) && state.query) searchSoon();
    },
  });
  panes[name].view.layer.style(state.size, state.opacity);
  fillSelect(panes[name].find(".slide"), store.slides.map(({ slide }) => [slide, slide]), state[name].slide);
}

function displayFields() {
  const on = (id, read) => byId(id).addEventListener("input", (event) => {
    read(event.target);
    style();
    mark(); // rings are as large as spots
    save();
  });
  const style = () => both().forEach((pane) => pane.view.layer.style(state.size, state.opacity));
  on("opacity", ({ value }) => (state.opacity = Number(value)));
  on("size", ({ value }) => (state.size = Number(value)));
  for (const [id, read] of [["map", ({ value }) => value], ["full", ({ checked }) => checked], ["same", ({ checked }) => checked]]) {
    byId(id).addEventListener("change", (event) => {
      state[id] = read(event.target);
      paintAll();
      save();
    });
  }
}

function showFields() {
  byId("opacity").value = state.opacity;
  byId("size").value = state.size;
  byId("map").value = state.map;
  byId("full").checked = state.full;
  byId("same").checked = state.same;
  byId("linked").setAttribute("aria-pressed", String(state.linked));
  panel.adopt();
}

/** Show what the state says, from the first slide on. */
async function restore() {
  const known = (slide) => store.slides.some((one) => one.slide === slide);
  if (!state.a.slide) state.a.slide = store.slides[0].slide;
  for (const pane of Object.values(panes)) pane.settings = state[pane.name];
  showFields();
  showCurrent();
  if (!known(state.a.slide)) announce(`No slide ${state.a.slide} in this store`);
  await panes.a.load();
  if (state.split) await setSplit(true);
  for (const pane of both()) pane.view.layer.style(state.size, state.opacity);
  if (state.query) {
    const spot = both().map((pane) => pane.spot((pane.chosen = state.query.spot ? pane.indexOf(state.query.spot) : -1))).find(Boolean);
    ask(state.query, spot?.said);
  }
}

async function start() {
  const early = state.a.slide ? [api.slideInfo(state.a.slide), api.spots(state.a.slide)] : [];
  early.forEach((one) => one.catch(() => {})); // asked again, with words, when the view opens
  const [held, encoders] = await Promise.all([api.get("/api/slides"), api.get("/api/encoders")]);
  store = { name: held.store, slides: held.slides, encoders: encoders.encoders };
  byId("store-name").textContent = store.name;
  document.title = `${store.name} · spared-fm explorer`;
  byId("slide-count").textContent = store.slides.length.toLocaleString("en-GB");
  byId("slide-filter").hidden = store.slides.length < 8;
  panel = new SearchPanel(state, store, {
    changed() {
      save();
      searchSoon();
    },
    gene: () => (active ?? panes.a).gene(),
    column: () => /^obs:(.*)$/s.exec((active ?? panes.a).settings.colour)?.[1] ?? null,
    show,
    clear,
    ask(id) {
      const pane = both().find((one) => one.indexOf(id) >= 0);
      if (pane) pick(pane, pane.indexOf(id));
      else ask({ spot: id });
    },
    done(answer) {
      results = answer?.results ?? [];
      mark();
    },
  });
  showList();
  if (!store.slides.length) return;
  document.body.classList.toggle("split", state.split); // before the picture is fitted to its view
  makePane("a");
  active = panes.a;
  displayFields();
  byId("slide-filter").addEventListener("input", (event) => showList(event.target.value));
  byId("split").addEventListener("click", () => setSplit(!state.split));
  byId("linked").addEventListener("click", () => {
    state.linked = !state.linked;
    byId("linked").setAttribute("aria-pressed", String(state.linked));
    link.tie(panes, state);
    save();
  });
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    panes.a.find(".picture").focus();
  });
  uploadDialog(async (image) => {
    state.query = { image, fresh: true };
    results = [];
    for (const pane of both()) pane.chosen = -1;
    panel.showQuery();
    mark();
    save();
    try {
      await panel.run();
    } catch (error) {
      clear();
      throw error;
    }
    state.query.fresh = false;
  });
  window.addEventListener("hashchange", () => {
    Object.assign(state, fromHash(location.hash));
    restored = false;
    if (!state.query) clear();
    if (!state.split && panes.b) setSplit(false);
    document.body.classList.toggle("split", state.split);
    requestAnimationFrame(() => requestAnimationFrame(restore)); // the views have their new sizes by then
  });
  await restore();
}

start().catch((error) => {
  byId("views").append(el("p", { class: "error", role: "alert" }, error.message));
});
