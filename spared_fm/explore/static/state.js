// What the page shows, and how that is written in the address so that a link brings it back.

const VIEW = { slide: "", colour: "", gene: "", layer: "", minus: "", k: 8 };

export function freshState() {
  return {
    a: { ...VIEW },
    b: { ...VIEW },
    split: false,
    linked: true,
    same: true, // one scale for both views where their units agree
    size: 1,
    opacity: 0.85,
    map: "viridis",
    full: false, // the ramp spans all values, not the middle 96 %
    at: null, // {x, y, z}: centre of view a in image pixels, screen pixels per image pixel
    query: null, // {spot: "slide/barcode"} | {region: {slide, x, y, width, height} in image pixels}
    encoder: "",
    k: 10,
    exclude: "slide",
    each: false,
    patients: [],
    slides: [],
    gene: "", // whose expression the neighbours show; empty: that of the view
  };
}

const bounded = (text, low, high, otherwise) => {
  const value = Number(text);
  return text !== null && text !== "" && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
};

const FRESH = freshState();
const KEYS = Object.keys(VIEW);

function writeQuery(query) {
  if (!query || query.image) return null; // a picture can't be put in an address
  if (query.spot) return `spot:${query.spot}`;
  const { slide, x, y, width, height } = query.region;
  return `region:${slide}:${[x, y, width, height].map((v) => Math.round(v)).join(",")}`;
}

function readQuery(text) {
  if (!text) return null;
  if (text.startsWith("spot:") && text.includes("/")) return { spot: text.slice(5) };
  const match = /^region:(.+):(-?\d+),(-?\d+),(\d+),(\d+)$/.exec(text);
  if (!match) return null;
  const [x, y, width, height] = match.slice(2).map(Number);
  return { region: { slide: match[1], x, y, width, height } };
}

/** The state as the part of the address after #; only what differs from a fresh page. */
export function toHash(state) {
  const params = new URLSearchParams();
  const put = (name, value, fresh) => {
    if (value !== fresh && value !== null && value !== "") params.set(name, value);
  };
  for (const name of state.split ? ["a", "b"] : ["a"]) {
    for (const key of KEYS) put(name === "a" ? key : `b.${key}`, state[name][key], VIEW[key]);
  }
  for (const key of ["split", "linked", "same", "full", "each"]) put(key, Number(state[key]), Number(FRESH[key]));
  for (const key of ["size", "opacity", "map", "encoder", "exclude"]) put(key, state[key], FRESH[key]);
  put("n", state.k, FRESH.k);
  put("expression", state.gene, "");
  put("patients", JSON.stringify(state.patients), "[]");
  put("slides", JSON.stringify(state.slides), "[]");
  if (state.at) put("at", [state.at.x.toFixed(0), state.at.y.toFixed(0), state.at.z.toPrecision(4)].join(","), "");
  put("query", writeQuery(state.query), null);
  return params.toString();
}

function readList(text) {
  try {
    const list = JSON.parse(text ?? "[]");
    return Array.isArray(list) ? list.filter((one) => typeof one === "string") : [];
  } catch {
    return [];
  }
}

/** The state of an address; what it doesn't say, or says wrongly, is as on a fresh page. */
export function fromHash(hash) {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const state = freshState();
  for (const name of ["a", "b"]) {
    for (const key of KEYS) state[name][key] = params.get(name === "a" ? key : `b.${key}`) ?? VIEW[key];
    state[name].k = Math.round(bounded(state[name].k, 2, 20, VIEW.k));
  }
  for (const key of ["split", "linked", "same", "full", "each"]) {
    if (params.has(key)) state[key] = params.get(key) === "1";
  }
  state.size = bounded(params.get("size"), 0.2, 2, FRESH.size);
  state.opacity = bounded(params.get("opacity"), 0, 1, FRESH.opacity);
  state.k = Math.round(bounded(params.get("n"), 1, 200, FRESH.k));
  if (["viridis", "cividis", "magma"].includes(params.get("map"))) state.map = params.get("map");
  if (["slide", "patient", "cohort", "none"].includes(params.get("exclude"))) state.exclude = params.get("exclude");
  state.encoder = params.get("encoder") ?? "";
  state.gene = params.get("expression") ?? "";
  state.patients = readList(params.get("patients"));
  state.slides = readList(params.get("slides"));
  state.query = readQuery(params.get("query"));
  const at = (params.get("at") ?? "").split(",").map(Number);
  if (at.length === 3 && at.every(Number.isFinite) && at[2] > 0) state.at = { x: at[0], y: at[1], z: at[2] };
  return state;
}
