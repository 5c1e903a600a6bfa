// What the colours mean: name, unit, ticks; categories can be picked out one by one.

import { gradient } from "./colour.js";
import { count, el, number } from "./dom.js";

const head = (label, unit) =>
  el("p", { class: "legend-name" }, el("strong", {}, label), unit && !label.endsWith(unit) ? el("span", {}, ` ${unit}`) : null);

function ramp(answer, colours, map) {
  const clipped = (more, end) => (more ? `${end === "low" ? "≤" : "≥"} ` : "");
  const low = clipped(answer.min < colours.low, "low") + number(colours.low);
  const high = clipped(answer.max > colours.high, "high") + number(colours.high);
  const bar = el("i", { class: "ramp" });
  bar.style.backgroundImage = gradient(map, answer.diverging);
  const middle = answer.diverging ? "0" : number((colours.low + colours.high) / 2);
  return [bar, el("p", { class: "ticks" }, ...[low, middle, high].map((text) => el("span", {}, text)))];
}

function items(colours, focus, pick) {
  const list = el("ul", { class: "categories" });
  for (const { name, code, spots, colour } of colours.items) {
    const swatch = el("i", { class: "swatch" });
    swatch.style.backgroundColor = colour;
    const pressed = String(focus === code);
    const press = () => pick(focus === code ? null : code);
    list.append(
      el("li", {}, el("button", { type: "button", "aria-pressed": pressed, onclick: press },
        swatch, el("span", {}, name), el("span", { class: "soft" }, spots.toLocaleString("en-GB")))),
    );
  }
  return [list, colours.repeated ? el("p", { class: "soft" }, "More groups than colours: colours repeat.") : null];
}

/** Fill a view's legend; `pick(code | null)` is called when the reader picks a category out. */
export function showLegend(box, answer, colours = null, { map, focus, pick } = {}) {
  box.hidden = answer === null;
  if (answer === null) return;
  const missing = colours.known.length - colours.known.reduce((sum, one) => sum + one, 0);
  const kinds = {
    number: () => ramp(answer, colours, map),
    category: () => items(colours, focus, pick),
    rgb: () => [el("p", { class: "soft" }, "Red, green, blue: the first three principal components. Like colours, like embeddings.")],
  };
  const body = kinds[answer.kind]();
  box.replaceChildren(
    head(answer.label, answer.unit),
    ...body.filter(Boolean),
    missing ? el("p", { class: "soft" }, `○ no value: ${count(missing, "spot")}`) : "",
  );
}
