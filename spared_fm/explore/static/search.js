// Similar patches: what was asked, the filters, the results with thumbnails, and the neighbours' expression.

import * as api from "./api.js";
import { announce, count, el, fillSelect, number, svg } from "./dom.js";

const byId = (id) => document.getElementById(id);
const THUMBNAIL = 160; // px asked for; shown at half that on sharp screens

const slideOf = (id) => id.slice(0, id.indexOf("/"));
const barcodeOf = (id) => id.slice(id.indexOf("/") + 1);

/** The encoder to begin with: one with a sound index, then one that can encode pictures, then the one that says most. */
function bestEncoder(encoders) {
  const worth = ({ index, encodes, dim }) => (index && !index.problem ? 4 : 0) + (encodes ? 2 : 0) + dim / 1e6;
  return [...encoders].sort((one, other) => worth(other) - worth(one))[0]?.key ?? "";
}

/** Dots of the neighbours' values on a line, their mean, and the query's own value. */
function stripChart(values, mean, own) {
  const all = own === null ? values : [...values, own];
  const [low, high] = [Math.min(0, ...all), Math.max(...all)];
  const at = (value) => 8 + (284 * (value - low)) / (high - low || 1);
  const dots = values.map((value) => svg("circle", { cx: at(value), cy: 12, r: 4, class: "dot" }));
  const marks = [svg("path", { d: `M${at(mean)} 3v18`, class: "mean" })];
  if (own !== null) marks.push(svg("path", { d: `M${at(own)} 5l7 7l-7 7l-7 -7z`, class: "own" }));
  const said = (x, anchor, text) => svg("text", { x, y: 33, "text-anchor": anchor }, text);
  const ends = [said(8, "start", number(low)), said(292, "end", number(high))];
  return svg("svg", { viewBox: "0 0 300 36", class: "strip", "aria-hidden": "true" },
    svg("path", { d: "M8 12H292", class: "axis" }), ...dots, ...marks, ...ends);
}

export class SearchPanel {
  /**
   * `state` is the page's; `store` {slides, encoders}; `calls`: changed(), gene() → {gene, layer} | null, column() → obs column | null,
   * show(result, beside), ask(spot id), done(answer | null).
   */
  constructor(state, store, calls) {
    this.state = state;
    this.store = store;
    this.calls = calls;
    this.turn = 0;
    this.giveUp = null;
    this.#filters();
    this.showQuery();
  }

  /** Make the fields show the state. */
  adopt() {
    const { state, store } = this;
    const keys = store.encoders.map(({ key }) => key);
    if (!keys.includes(state.encoder)) state.encoder = bestEncoder(store.encoders);
    fillSelect(byId("encoder"), keys.map((key) => [key, key]), state.encoder);
    byId("exclude").value = state.exclude;
    byId("results-k").value = state.k;
    byId("each").checked = state.each;
    byId("expression").value = state.gene;
    for (const [box, chosen] of [["patients", state.patients], ["within-slides", state.slides]]) {
      for (const input of byId(box).querySelectorAll("input")) input.checked = chosen.includes(input.value);
    }
    this.#sayWithin();
  }

  /** Show what is being asked; nothing asked: how to ask. */
  showQuery(said = "") {
    const { query } = this.state;
    const box = byId("query");
    byId("filters").hidden = this.store.encoders.length === 0;
    if (this.store.encoders.length === 0) {
      box.replaceChildren(el("p", { class: "empty" }, "No embeddings in this store yet: run “spared-fm encode” to search it."));
    } else if (!query) {
      box.replaceChildren(el("p", { class: "empty" }, "Click a spot, draw a region, or search by an image."));
    } else {
      const about = { spot: () => this.#aboutSpot(said), region: () => this.#aboutRegion(), image: () => this.#aboutImage() };
      const kind = Object.keys(about).find((one) => query[one]);
      const clear = el("button", { type: "button", class: "clear", "aria-label": "Clear the search", title: "Clear (Esc)",
        onclick: () => this.calls.clear() }, "×");
      box.replaceChildren(...about[kind](), clear);
    }
  }

  /** Forget the question and its results. */
  clear() {
    this.turn += 1;
    this.giveUp?.abort();
    this.#busy(false);
    this.#problem(null);
    this.showQuery();
    byId("results").replaceChildren();
    byId("search-summary").textContent = "";
    byId("expression-summary").replaceChildren();
  }

  /** Ask the server what the state says and show the answer; throws only for a picture, whose dialog says why. */
  async run() {
    const { query } = this.state;
    if (!query || !this.state.encoder) return;
    const turn = ++this.turn;
    this.giveUp?.abort();
    this.giveUp = new AbortController();
    this.#problem(null);
    this.#busy(true);
    const shown = this.calls.gene();
    const gene = this.state.gene ? { gene: this.state.gene, layer: shown?.layer ?? "counts" } : shown;
    try {
      const answer = await this.#ask(query, gene, this.giveUp.signal);
      if (turn !== this.turn) return;
      await this.#show(answer, gene, turn);
    } catch (error) {
      if (error.name === "AbortError" || turn !== this.turn) return;
      byId("results").replaceChildren();
      byId("search-summary").textContent = "";
      byId("expression-summary").replaceChildren();
      this.calls.done(null);
      if (query.image && query.fresh) throw error;
      this.#problem(error.message);
    } finally {
      if (turn === this.turn) this.#busy(false);
    }
  }

  #ask(query, gene, signal) {
    const { state, store } = this;
    const column = this.calls.column();
    const of = (patient) => store.slides.filter((one) => one.patient === patient).map(({ slide }) => slide);
    const within = [...new Set([...state.patients.flatMap(of), ...state.slides])];
    const asked = {
      encoder: state.encoder,
      k: state.k,
      one_per_slide: state.each,
      slides: within.length ? within : null,
      columns: column ? [column] : [],
      genes: gene ? [gene.gene] : [],
      layer: gene ? gene.layer : "counts",
    };
    if (query.image) return api.searchImage(query.image.file, { ...asked, mpp: query.image.mpp }, signal);
    asked.exclude = state.exclude === "none" ? null : state.exclude;
    if (query.spot) return api.search({ ...asked, spots: [query.spot] }, signal);
    const { slide, x, y, width, height } = query.region;
    const { mpp } = store.slides.find((one) => one.slide === slide) ?? {};
    if (!mpp) throw new Error(`${slide} doesn't say how many µm a pixel is, so no region of it can be searched; choose a spot.`);
    return api.search({ ...asked, region: { slide, x: x * mpp, y: y * mpp, width: width * mpp, height: height * mpp } }, signal);
  }

  async #show(answer, gene, turn) {
    const { results } = answer;
    const slides = new Set(results.map(({ slide }) => slide));
    const from = { "region spots": `the mean of ${count(answer.query_spots.length, "spot")}`, "region pixels": "the region’s pixels", upload: "the picture" };
    byId("search-summary").textContent = results.length
      ? `${count(results.length, "patch")} from ${count(slides.size, "slide")}, by ${answer.metric} similarity to ` +
        `${from[answer.made_from] ?? "the spot"}, in ${Math.max(1, Math.round(answer.milliseconds))} ms`
      : "No patch fits these filters. Leave out less, or search within more slides.";
    const column = this.calls.column();
    byId("results").replaceChildren(...results.map((result) => this.#card(result, column, gene)));
    this.calls.done(answer);
    announce(`${count(results.length, "similar patch")} found${results.length ? ` on ${count(slides.size, "slide")}` : ""}`);
    await this.#expression(results, gene, turn);
  }

  #card(result, column, gene) {
    const row = (text, kind = "") => el("span", { class: kind }, text);
    const shown = column && result[`obs:${column}` in result ? `obs:${column}` : column]; // a column may be named x, or rank
    const value = gene && result.expression ? result.expression[gene.gene] : undefined;
    const um = this.store.encoders.find(({ key }) => key === this.state.encoder)?.patch_um ?? 112;
    const picture = el("img", { src: api.patchUrl(result.spot, um, THUMBNAIL), alt: "", width: 88, height: 88, loading: "lazy" });
    picture.addEventListener("error", () => picture.classList.add("absent"));
    const said = [
      row(result.slide, "strong"),
      row(barcodeOf(result.spot), "soft"),
      result.patient && result.patient !== result.slide ? row(`patient ${result.patient}`, "soft") : null,
      column && shown !== null && shown !== undefined ? row(String(shown)) : null,
      gene ? row(`${gene.gene} ${value === null || value === undefined ? "not measured" : number(value)}`) : null,
    ];
    const similar = row(result.similarity.toFixed(3).replace("-", "−"), "similarity");
    similar.prepend(el("span", { class: "unseen" }, "similarity "));
    const go = el("button", { type: "button", class: "go", onclick: () => this.calls.show(result, false) },
      el("span", { class: "frame" }, picture, row(String(result.rank), "rank")), el("span", { class: "said" }, similar, ...said));
    const beside = el("button", { type: "button", title: "Show beside the query",
      "aria-label": `Show ${result.spot} beside the query`, onclick: () => this.calls.show(result, true) }, "Beside");
    const again = el("button", { type: "button", title: "Search from this patch",
      "aria-label": `Search from ${result.spot}`, onclick: () => this.calls.ask(result.spot) }, "Search this");
    return el("li", { "data-spot": result.spot }, go, el("span", { class: "more" }, beside, again));
  }

  async #expression(results, gene, turn) {
    const box = byId("expression-summary");
    box.replaceChildren();
    if (!gene || !results.length) return;
    const values = results.map(({ expression }) => expression?.[gene.gene]).filter((v) => v !== null && v !== undefined);
    if (!values.length) {
      box.append(el("p", { class: "soft" }, `${gene.gene} was not measured in these neighbours.`));
      return;
    }
    const own = await this.#own(gene);
    if (turn !== this.turn) return;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const unit = own.unit ? ` ${own.unit}` : "";
    box.append(
      el("h3", {}, `${gene.gene} in the neighbours`),
      stripChart(values, mean, own.value),
      el("p", {},
        `mean ${number(mean)} of ${count(values.length, "patch")}`,
        own.value === null ? "" : `; ${number(own.value)} in the query ◆`,
        el("span", { class: "soft" }, `${unit}${own.label ? ` · ${own.label}` : ""}`)),
    );
  }

  /** The query's own value of a gene: of its spot, if it is one. */
  async #own({ gene, layer }) {
    const { query } = this.state;
    const slide = query.spot ? slideOf(query.spot) : query.region?.slide;
    if (!slide) return { value: null, unit: "", label: layer };
    try {
      const [values, spots] = await Promise.all([api.values(slide, { what: `gene:${gene}`, layer }), api.spots(slide)]);
      const value = query.spot ? values.values[spots.ids.indexOf(barcodeOf(query.spot))] : null;
      return { value: value ?? null, unit: values.unit, label: "" };
    } catch {
      return { value: null, unit: "", label: "" }; // the neighbours' values still stand
    }
  }

  #aboutSpot(said) {
    const { spot } = this.state.query;
    const slide = this.store.slides.find((one) => one.slide === slideOf(spot));
    const um = this.store.encoders.find(({ key }) => key === this.state.encoder)?.patch_um ?? 112;
    const picture = el("img", { src: api.patchUrl(spot, um, 224), alt: `Patch at ${spot}, ${number(um)} µm wide`, width: 104, height: 104 });
    picture.addEventListener("error", () => picture.classList.add("absent"));
    return [picture, el("div", {}, el("strong", {}, slideOf(spot)), el("span", {}, barcodeOf(spot)),
      slide?.patient ? el("span", { class: "soft" }, `patient ${slide.patient}`) : null,
      said ? el("span", {}, said) : null, el("span", { class: "soft" }, `patch ${number(um)} µm`))];
  }

  #aboutRegion() {
    const { slide, width, height } = this.state.query.region;
    const { mpp } = this.store.slides.find((one) => one.slide === slide) ?? {};
    const size = mpp ? `${number(width * mpp, 4)} × ${number(height * mpp, 4)} µm` : `${number(width, 4)} × ${number(height, 4)} px`;
    return [el("div", {}, el("strong", {}, slide), el("span", {}, `region of ${size}`))];
  }

  #aboutImage() {
    const { name, url, mpp } = this.state.query.image;
    return [el("img", { src: url, alt: "The picture searched by", width: 104, height: 104 }),
      el("div", {}, el("strong", {}, name), el("span", { class: "soft" }, mpp ? `${number(mpp)} µm per pixel` : "pixel size unknown"))];
  }

  #filters() {
    const { state, store } = this;
    const change = (id, run) => byId(id).addEventListener("change", (event) => {
      run(event.target);
      this.calls.changed();
    });
    change("encoder", ({ value }) => (state.encoder = value));
    change("exclude", ({ value }) => (state.exclude = value));
    change("results-k", (input) => {
      state.k = Math.min(200, Math.max(1, Math.round(Number(input.value)) || 10));
      input.value = state.k;
    });
    change("each", ({ checked }) => (state.each = checked));
    change("expression", ({ value }) => (state.gene = value.trim()));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("expression").addEventListener("input", async ({ target }) => {
      const { slide } = state.a;
      const found = await api.genes(slide, this.calls.gene()?.layer ?? "counts", target.value.trim()).catch(() => ({ genes: [] }));
      byId("expression-genes").replaceChildren(...found.genes.map((name) => el("option", { value: name })));
    });
    const patients = [...new Set(store.slides.map(({ patient }) => patient).filter(Boolean))].sort();
    const boxes = (id, names, key) => {
      const box = (name) => {
        const input = el("input", { type: "checkbox", value: name });
        input.addEventListener("change", () => {
          state[key] = input.checked ? [...state[key], name] : state[key].filter((one) => one !== name);
          this.#sayWithin();
          this.calls.changed();
        });
        return el("label", { class: "check" }, input, ` ${name}`);
      };
      byId(id).replaceChildren(...names.map(box));
      byId(id).parentElement.hidden = names.length < 2;
    };
    boxes("patients", patients, "patients");
    boxes("within-slides", store.slides.map(({ slide }) => slide), "slides");
    byId("within").hidden = store.slides.length < 2;
  }

  #sayWithin() {
    const { patients, slides } = this.state;
    const parts = [patients.length ? count(patients.length, "patient") : null, slides.length ? count(slides.length, "slide") : null];
    byId("within-said").textContent = parts.filter(Boolean).join(" and ") || "all slides";
  }

  #busy(on) {
    byId("search-busy").hidden = !on;
    byId("results").setAttribute("aria-busy", String(on));
  }

  #problem(message) {
    byId("search-error").hidden = message === null;
    byId("search-error").textContent = message ?? "";
  }
}
