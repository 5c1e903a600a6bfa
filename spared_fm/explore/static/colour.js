// From values to colours, and to the legend that explains them. Every map can be read by colour-blind people.

const hex = (text) => text.split(" ").map((six) => [0, 2, 4].map((at) => parseInt(six.slice(at, at + 2), 16)));

// Anchors at equal steps, linear between them (matplotlib's maps, less than one grey level off).
export const SEQUENTIAL = {
  viridis: hex(
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
  ),
  cividis: hex(
    "00224e 002e6a 1a386f 32436d 434e6c 535a6d 61656f 6f7073 7d7c78 8c8878 9b9476 aba072 bcae6c cdbb63 dec958 f0d846 fee838",
  ),
  magma: hex(
    "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf",
  ),
};
// Purple for below, orange for above, pale between (PuOr reversed).
const DIVERGING = hex("2d004b 532687 8073ac b1aad1 d8daeb f7f7f6 fee0b6 fcb761 e08214 b25706 7f3b08");
// Okabe and Ito's eight, with their black last, then Tol's muted ones.
const CATEGORIES = hex(
  "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 000000 882255 44aa99 ddcc77 332288 aa4499 117733 999933 88ccee",
);

function table(anchors) {
  const made = new Uint8Array(256 * 3);
  for (let step = 0; step < 256; step += 1) {
    const at = (step / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    for (let c = 0; c < 3; c += 1) {
      made[3 * step + c] = Math.round(anchors[low][c] + (at - low) * (anchors[low + 1][c] - anchors[low][c]));
    }
  }
  return made;
}

/** CSS gradient of a map, for its legend. */
export function gradient(name, diverging) {
  const anchors = diverging ? DIVERGING : SEQUENTIAL[name];
  return `linear-gradient(to right, ${anchors.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
}

/** The range a ramp spans: the middle 96 % of the values unless `full`; a difference is symmetric about nought. */
export function range(answer, full) {
  let [low, high] = full ? [answer.min, answer.max] : [answer.low, answer.high];
  if (low === high) [low, high] = [answer.min, answer.max]; // a gene that few spots have
  if (answer.diverging) {
    const most = Math.max(Math.abs(low ?? 0), Math.abs(high ?? 0)) || 1;
    return [-most, most];
  }
  return low === high ? [low, low + 1] : [low, high];
}

function numbers(answer, map, [low, high]) {
  const { values } = answer;
  const rgb = new Uint8Array(3 * values.length);
  const known = new Uint8Array(values.length);
  const colours = table(answer.diverging ? DIVERGING : SEQUENTIAL[map]);
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] === null) continue;
    known[i] = 1;
    const step = Math.round((255 * (values[i] - low)) / (high - low));
    const at = 3 * Math.min(255, Math.max(0, step));
    rgb[3 * i] = colours[at];
    rgb[3 * i + 1] = colours[at + 1];
    rgb[3 * i + 2] = colours[at + 2];
  }
  return { rgb, known };
}

function categories(answer) {
  const { values } = answer;
  const rgb = new Uint8Array(3 * values.length);
  const known = new Uint8Array(values.length);
  const counts = new Array(answer.categories.length).fill(0);
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] === null) continue;
    known[i] = 1;
    counts[values[i]] += 1;
    rgb.set(CATEGORIES[values[i] % CATEGORIES.length], 3 * i);
  }
  const items = answer.categories.map((name, i) => {
    return { name, code: i, spots: counts[i], colour: `rgb(${CATEGORIES[i % CATEGORIES.length].join(" ")})` };
  });
  return { rgb, known, items, repeated: answer.categories.length > CATEGORIES.length };
}

function triples(answer) {
  const rgb = new Uint8Array(3 * answer.values.length);
  const known = new Uint8Array(answer.values.length);
  answer.values.forEach((value, i) => {
    if (value === null) return;
    known[i] = 1;
    rgb.set(value, 3 * i);
  });
  return { rgb, known };
}

/**
 * Colours of an answer of /values.
 *
 * Returns {rgb: 3 bytes a spot, known: 1 where a spot has a value, low, high (ramps), items (categories)}.
 */
export function colouring(answer, { map, low, high }) {
  if (answer.kind === "rgb") return triples(answer);
  if (answer.kind === "category") return categories(answer);
  return { ...numbers(answer, map, [low, high]), low, high };
}
