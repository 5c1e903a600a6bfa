// The server's read-only API. Every failure becomes an Error whose message is a sentence for the reader.

const KEPT = 60; // answers that may be asked for again: going back to a gene is instant
const answers = new Map();

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server doesn't answer. Is “spared-fm explore” still running?");
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body !== null) return body;
  const said = body && (body.error ?? body.detail);
  throw new Error(typeof said === "string" ? said : `The server answered ${answer.status} ${answer.statusText}.`);
}

function address(path, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "") query.append(name, value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/** GET a JSON answer; the same question is asked once. */
export function get(path, params) {
  const url = address(path, params);
  if (!answers.has(url)) {
    const answer = ask(url);
    answers.set(url, answer);
    answer.catch(() => answers.delete(url));
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  }
  return answers.get(url);
}

const slidePath = (slide) => `/api/slides/${encodeURIComponent(slide)}`;

export const slideInfo = (slide) => get(slidePath(slide));
export const spots = (slide) => get(`${slidePath(slide)}/spots`);
export const values = (slide, params) => get(`${slidePath(slide)}/values`, params);
export const genes = (slide, layer, prefix) => get("/api/genes", { slide, layer, prefix, limit: 30 });
export const tileUrl = (slide, level, column, row) => `${slidePath(slide)}/tiles/${level}/${column}_${row}.jpg`;
export const thumbnailUrl = (slide, px) => address(`${slidePath(slide)}/thumbnail.jpg`, { px });

/** Picture of a spot (its global id, slide/barcode), `um` micrometres wide. */
export function patchUrl(id, um, px) {
  const cut = id.indexOf("/");
  return address(`${slidePath(id.slice(0, cut))}/patch`, { spot: id.slice(cut + 1), um, px });
}

/** Search by spots or a region; `signal` gives up an older question. */
export function search(body, signal) {
  return ask("/api/search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

/** Search by a picture: the same fields, as a form. */
export function searchImage(file, fields, signal) {
  const form = new FormData();
  form.append("image", file);
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") form.append(name, one);
    }
  }
  return ask("/api/search/upload", { method: "POST", body: form, signal });
}
