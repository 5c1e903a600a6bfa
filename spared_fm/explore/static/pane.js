// One view with its tools: which slide, what its spots are coloured by, the legend, the words while it loads or fails.

import * as api from "./api.js";
import { colouring, range } from "./colour.js";
import { announce, count, debounce, el, fillSelect, number } from "./dom.js";
import { showLegend } from "./legend.js";
import { SlideView } from "./viewer.js";

const ENOUGH = 30; // barcodes offered while one is typed

/** What a slide can be coloured by, as options of a <select>. */
function choices(info) {
  const of = (kind, text) => info.encoders.map(({ key }) => [`${kind}:${key}`, `${text}, ${key}`]);
  const groups = [
    ["Annotation", info.obs.map(({ name }) => [`obs:${name}`, name])],
    ["Expression", info.layers.length ? [["gene", "Gene"]] : []],
    ["Embedding", [...of("pca", "Principal components"), ...of("cluster", "Clusters")]],
  ];
  return [["none", "Outlines only"], ...groups.filter(([, inner]) => inner.length)];
}

/** The colour of a slide nobody has chosen one for: its first annotation, else its embedding's directions. */
function firstChoice(info) {
  const named = info.obs.find(({ kind, categories }) => kind === "category" && categories > 1 && categories <= 16);
  if (named) return `obs:${named.name}`;
  return info.encoders.length ? `pca:${info.encoders[0].key}` : "none";
}

/** What can be shown of a layer: its values, its uncertainty, its difference from layers of the same unit. */
function shows(info, layer) {
  const own = info.layers.find((one) => one.layer === layer);
  const others = info.layers.filter((one) => one !== own && one.kind !== "uncertainty" && (one.unit === own.unit || !one.unit || !own.unit));
  const rows = [["", "values"]];
  if (own.uncertainty) rows.push(["uncertainty", "uncertainty"]);
  return [...rows, ...others.map((one) => [one.layer, `difference: less ${one.label}`])];
}

export class Pane {
  /** `name` a or b; `settings` its part of the state; `calls`: see app.js. */
  constructor(name, settings, calls) {
    this.name = name;
    this.settings = settings;
    this.calls = calls;
    this.adopted = null; // the slide that the tools fit, while its picture may still be opening
    this.fitted = null; // the settings that the tools show
    this.answer = null;
    this.colours = null;
    this.focus = null;
    this.chosen = -1;
    this.turn = 0;
    const made = document.getElementById("view-template").content.cloneNode(true);
    this.section = made.querySelector("section");
    this.section.id = `view-${name}`;
    this.find = (selector) => this.section.querySelector(selector);
    this.find("h3").textContent = `View ${name.toUpperCase()}`;
    this.section.setAttribute("aria-label", `View ${name.toUpperCase()}`);
    for (const [input, list] of [[".gene", ".gene-tool + datalist"], [".spot-id", ".spot-tool datalist"]]) {
      this.find(list).id = `${input.slice(1)}-list-${name}`;
      this.find(input).setAttribute("list", this.find(list).id);
    }
    document.getElementById("views").append(this.section);
    this.view = new SlideView(this.find(".stage"), {
      camera: () => calls.camera(this),
      pick: (_view, index) => calls.pick(this, index),
      region: (_view, box) => calls.region(this, box),
      hover: (_view, index, event) => this.#tip(index, event),
    });
    this.#tools();
    this.#keys();
  }

  get info() {
    return this.view.info;
  }

  /** The gene this view shows, with its layer; null where it shows none. */
  gene() {
    const { colour, gene, layer } = this.settings;
    return colour === "gene" && gene ? { gene, layer } : null;
  }

  /** Show what the settings say; returns whether it could. */
  async load() {
    const turn = ++this.turn;
    const current = () => turn === this.turn;
    const { slide } = this.settings;
    this.#problem(null);
    try {
      if (!this.info || this.info.slide !== slide || !this.view.spots) {
        this.#busy(`Opening ${slide}…`);
        const asked = api.spots(slide);
        asked.catch(() => {});
        const info = await api.slideInfo(slide);
        if (!current()) return false;
        this.#adopt(info);
        const coloured = this.#ask();
        coloured?.catch(() => {});
        this.answer = null;
        showLegend(this.find(".legend"), null);
        await this.view.open(info);
        if (!current()) return false;
        const spots = await asked;
        if (!current()) return false;
        this.view.setSpots(spots);
        this.chosen = -1;
        this.find(".about").textContent = `${count(spots.ids.length, "spot")}${info.patient ? ` · patient ${info.patient}` : ""}`;
        this.calls.opened(this);
      } else if (this.fitted !== this.settings) {
        this.#adopt(this.info); // another address of the same slide
        this.calls.opened(this);
      }
      this.#busy("Colouring spots…");
      const answer = await (this.#ask() ?? null);
      if (!current()) return false;
      this.focus = null;
      this.answer = answer;
      this.calls.coloured(this);
      performance.mark("spots coloured");
      this.#busy(null);
      return true;
    } catch (error) {
      if (!current()) return false;
      this.#busy(null);
      this.#problem(error.message);
      if (this.info && this.info.slide === slide) this.#uncoloured();
      return false;
    }
  }

  /** Paint the spots and the legend anew; `shared` is a range for both views, or null for its own. */
  paint({ map, full }, shared) {
    if (!this.answer) {
      this.#uncoloured();
      return;
    }
    const [low, high] = this.answer.kind === "number" ? (shared ?? range(this.answer, full)) : [0, 1];
    this.colours = colouring(this.answer, { map, low, high });
    this.view.layer.paint(this.colours, this.answer.values, this.focus);
    const pick = (code) => {
      const pressed = code ?? this.focus; // its button is made anew, and keeps the focus
      this.focus = code;
      this.paint({ map, full }, shared);
      this.find(`.categories li:nth-child(${1 + (pressed ?? 0)}) button`)?.focus();
    };
    showLegend(this.find(".legend"), this.answer, this.colours, { map, focus: this.focus, pick });
  }

  /** Where a spot is and what it shows: {id, x, y, said}; null for one that isn't here. */
  spot(index) {
    const { spots } = this.view;
    if (!spots || index < 0 || index >= spots.ids.length) return null;
    const [x, y] = [spots.x[index], spots.y[index]];
    return { id: `${this.info.slide}/${spots.ids[index]}`, barcode: spots.ids[index], x, y, said: this.#said(index) };
  }

  /** Index of a spot by its global id; -1 if it is on another slide. */
  indexOf(id) {
    if (!this.info || !this.view.spots || !id.startsWith(`${this.info.slide}/`)) return -1;
    return this.view.spots.ids.indexOf(id.slice(this.info.slide.length + 1));
  }

  /** Go from the chosen spot to another; `by` steps in the slide's own order. */
  step(by) {
    const n = this.view.spots?.ids.length ?? 0;
    if (n) this.calls.pick(this, this.chosen < 0 ? (by > 0 ? 0 : n - 1) : (this.chosen + by + n) % n, true);
  }

  drawRegion(on) {
    this.view.drawRegion(on);
    this.find(".draw").setAttribute("aria-pressed", String(on));
    if (on) announce("Draw a rectangle with the pointer. Escape gives it up.");
  }

  #said(index) {
    if (!this.answer || this.answer.kind === "rgb") return "";
    const { label, unit, kind, categories, values } = this.answer;
    const value = values[index];
    if (value === null) return `${label}: no value`;
    if (kind === "category") return `${label}: ${categories[value]}`;
    return `${label}: ${number(value)}${unit && !label.endsWith(unit) ? ` ${unit}` : ""}`;
  }

  #uncoloured() {
    this.answer = null;
    this.colours = null;
    this.view.layer.paint(null);
    showLegend(this.find(".legend"), null);
  }

  /** Make the settings fit a slide: what it lacks is replaced by what it has. */
  #adopt(info) {
    const { settings } = this;
    this.adopted = info;
    this.fitted = settings;
    const offered = choices(info).flatMap((one) => (Array.isArray(one[1]) ? one[1].map(([value]) => value) : [one[0]]));
    if (!offered.includes(settings.colour)) settings.colour = firstChoice(info);
    fillSelect(this.find(".what"), choices(info), settings.colour);
    const layers = info.layers.filter((one) => one.kind !== "uncertainty");
    if (!layers.some((one) => one.layer === settings.layer)) settings.layer = layers[0]?.layer ?? "";
    fillSelect(this.find(".layer"), layers.map((one) => [one.layer, one.label]), settings.layer);
    this.#adoptLayer(info);
    this.find(".k").value = settings.k;
    this.find(".gene").value = settings.gene;
    this.find(".picture").setAttribute("aria-label", `Slide ${info.slide}`);
    this.find("h3").textContent = `View ${this.name.toUpperCase()}: ${info.slide}`;
    this.find(".slide").value = info.slide;
    this.find(".draw").hidden = this.find(".in-sight").hidden = info.encoders.length === 0;
    this.#reveal();
  }

  #adoptLayer(info) {
    const { settings } = this;
    if (!settings.layer) return;
    const rows = shows(info, settings.layer);
    if (!rows.some(([value]) => value === settings.minus)) settings.minus = "";
    fillSelect(this.find(".minus"), rows, settings.minus);
  }

  #reveal() {
    const { colour } = this.settings;
    this.find(".gene-tool").hidden = this.find(".layer-tool").hidden = colour !== "gene";
    this.find(".minus-tool").hidden = colour !== "gene" || this.find(".minus").options.length < 2;
    this.find(".k-tool").hidden = !colour.startsWith("cluster:");
  }

  /** Ask for the values that the settings name; null where spots are only outlined. */
  #ask() {
    const { slide, colour, gene, layer, minus, k } = this.settings;
    if (colour === "none" || !colour || (colour === "gene" && !gene)) return null;
    if (colour.startsWith("cluster:")) return api.values(slide, { what: colour, k });
    if (colour !== "gene") return api.values(slide, { what: colour });
    const own = minus === "uncertainty" ? this.#layerOf(layer).uncertainty : layer;
    return api.values(slide, { what: `gene:${gene}`, layer: own, minus: minus === "uncertainty" ? "" : minus });
  }

  #layerOf(name) {
    return this.adopted.layers.find((one) => one.layer === name);
  }

  #change(changes) {
    Object.assign(this.settings, changes);
    this.#reveal();
    this.calls.changed(this);
  }

  #tools() {
    const on = (selector, event, run) => this.find(selector).addEventListener(event, run);
    on(".slide", "change", (event) => this.calls.choose(this, event.target.value));
    on(".what", "change", (event) => {
      this.#change({ colour: event.target.value });
      if (event.target.value === "gene" && !this.settings.gene) this.find(".gene").focus();
    });
    on(".layer", "change", (event) => {
      this.settings.layer = event.target.value;
      this.#adoptLayer(this.info);
      this.#change({});
    });
    on(".minus", "change", (event) => this.#change({ minus: event.target.value }));
    on(".k", "change", (event) => {
      const k = Math.min(20, Math.max(2, Math.round(Number(event.target.value)) || 8));
      event.target.value = k;
      this.#change({ k });
    });
    const gene = this.find(".gene");
    const offer = debounce(() => this.#offerGenes(gene.value.trim()), 120);
    gene.addEventListener("focus", () => offer());
    gene.addEventListener("input", (event) => {
      offer();
      if (event.inputType === "insertReplacementText" || !event.inputType) this.#takeGene(gene); // one of the list
    });
    gene.addEventListener("change", () => this.#takeGene(gene));
    on(".in", "click", () => this.view.zoom(1.5));
    on(".out", "click", () => this.view.zoom(1 / 1.5));
    on(".home", "click", () => this.view.home());
    on(".draw", "click", () => this.drawRegion(!this.view.drawing));
    on(".previous", "click", () => this.step(-1));
    on(".next", "click", () => this.step(1));
    on(".in-sight", "click", () => this.info && this.calls.region(this, this.view.sight()));
    on(".problem button", "click", () => this.load());
    const barcode = this.find(".spot-id");
    barcode.addEventListener("input", () => this.#offerSpots(barcode.value.trim()));
    on(".spot-tool", "submit", (event) => {
      event.preventDefault();
      this.#goTo(barcode.value.trim());
    });
    barcode.addEventListener("change", () => this.#goTo(barcode.value.trim()));
    this.section.addEventListener("pointerdown", () => this.calls.active(this), true);
    this.section.addEventListener("focusin", () => this.calls.active(this));
    this.section.addEventListener("wheel", () => this.calls.active(this), { capture: true, passive: true });
  }

  async #offerGenes(prefix) {
    const found = await api.genes(this.settings.slide, this.settings.layer, prefix).catch(() => ({ genes: [] }));
    this.find(".gene-tool + datalist").replaceChildren(...found.genes.map((name) => el("option", { value: name })));
  }

  async #takeGene(input) {
    const typed = input.value.trim();
    if (!typed || typed === this.settings.gene) return;
    const found = await api.genes(this.settings.slide, this.settings.layer, typed).catch(() => ({ genes: [] }));
    const same = found.genes.find((name) => name.toLowerCase() === typed.toLowerCase());
    input.value = same ?? typed;
    this.#change({ gene: same ?? typed });
  }

  #offerSpots(part) {
    const offered = [];
    for (const id of this.view.spots?.ids ?? []) {
      if (id.toLowerCase().includes(part.toLowerCase())) offered.push(el("option", { value: id }));
      if (offered.length === ENOUGH) break;
    }
    this.find(".spot-tool datalist").replaceChildren(...offered);
  }

  #goTo(barcode) {
    if (!barcode || !this.info) return;
    const index = this.view.spots.ids.indexOf(barcode);
    if (index < 0) announce(`${this.info.slide} has no spot ${barcode}`);
    this.find(".spot-id").setAttribute("aria-invalid", String(index < 0));
    if (index >= 0) this.calls.pick(this, index, true);
  }

  #keys() {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const keys = {
      "+": () => this.view.zoom(1.4),
      "=": () => this.view.zoom(1.4),
      "-": () => this.view.zoom(1 / 1.4),
      0: () => this.view.home(),
      Home: () => this.view.home(),
      n: () => this.step(1),
      p: () => this.step(-1),
      r: () => !this.find(".draw").hidden && this.drawRegion(!this.view.drawing),
      Escape: () => (this.view.drawing ? this.drawRegion(false) : this.calls.clear()),
      Enter: () => {
        const spot = this.spot(this.chosen);
        if (spot) this.view.show(spot.x, spot.y, true);
      },
    };
    this.find(".picture").addEventListener("keydown", (event) => {
      if (!this.info || event.ctrlKey || event.metaKey || event.altKey) return;
      const arrow = arrows[event.key];
      if (arrow && event.shiftKey && this.view.spots) {
        const to = this.chosen < 0 ? 0 : this.view.neighbour(this.chosen, ...arrow);
        this.calls.pick(this, to, true);
      } else if (arrow) this.view.pan(...arrow);
      else if (keys[event.key] ?? keys[event.key.toLowerCase()]) (keys[event.key] ?? keys[event.key.toLowerCase()])();
      else return;
      event.preventDefault();
    });
  }

  #tip(index, event) {
    const tip = this.find(".tip");
    const spot = this.spot(index);
    this.find(".stage").classList.toggle("over-spot", spot !== null);
    tip.hidden = spot === null;
    if (!spot) return;
    tip.replaceChildren(el("strong", {}, spot.barcode), spot.said ? el("span", {}, spot.said) : "");
    const box = this.find(".stage").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    tip.style.left = `${Math.min(x + 14, box.width - tip.offsetWidth - 6)}px`;
    tip.style.top = `${Math.min(y + 16, box.height - tip.offsetHeight - 6)}px`;
  }

  #busy(text) {
    clearTimeout(this.waiting);
    const wait = this.find(".wait");
    this.section.setAttribute("aria-busy", String(text !== null));
    if (text === null) wait.hidden = true;
    else {
      this.find(".wait-said").textContent = text;
      this.waiting = setTimeout(() => (wait.hidden = false), 150); // what is quick needs no words
    }
  }

  #problem(message) {
    this.find(".problem").hidden = message === null;
    this.find(".problem p").textContent = message ?? "";
  }
}
