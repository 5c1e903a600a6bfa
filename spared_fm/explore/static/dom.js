// Small helpers over the document: no framework, no markup made from strings.

/** Make an element: `el("p", {class: "note", onclick: run}, "text", child)`; null children and attributes are left out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Fill a <select>: options are [value, text], or [group label, [[value, text], …]]. */
export function fillSelect(select, options, chosen) {
  const option = ([value, text]) => el("option", { value, selected: value === chosen }, text);
  select.replaceChildren(
    ...options.map(([name, inner]) =>
      Array.isArray(inner) ? el("optgroup", { label: name }, ...inner.map(option)) : option([name, inner]),
    ),
  );
  select.value = chosen;
}

/** Call `run` once things have been quiet for `wait` milliseconds. */
export function debounce(run, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait);
  };
}

const formats = new Map();

/** A number for people: three significant digits, thousands grouped. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(digits - 1);
  if (Number.isInteger(value) && Math.abs(value) >= 1000) return value.toLocaleString("en-GB");
  if (!formats.has(digits)) formats.set(digits, new Intl.NumberFormat("en-GB", { maximumSignificantDigits: digits }));
  return formats.get(digits).format(value).replace("-", "−");
}

/** "1 spot", "3,106 spots". */
export function count(n, noun) {
  const plural = noun.endsWith("h") ? `${noun}es` : `${noun}s`;
  return `${n.toLocaleString("en-GB")} ${n === 1 ? noun : plural}`;
}

/** Say something to those who listen rather than look. */
export function announce(text) {
  document.getElementById("said").textContent = text;
}
