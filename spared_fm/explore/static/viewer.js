// One slide on the screen: the deep-zoom picture (OpenSeadragon), its spots, and the marks on them.

import * as api from "./api.js";
import { el, number, svg } from "./dom.js";
import { SpotLayer } from "./spots.js";

const OpenSeadragon = window.OpenSeadragon;
// OpenSeadragon adds a <style> for touch screens unless it finds one; the server's policy forbids inline styles and ours has that rule.
const STYLE = document.createElementNS("urn:none", "style");
STYLE.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(STYLE);

const CALM = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
const STEP = 0.12; // of the view, an arrow key
const NEAR = 9; // screen pixels within which a pointer finds a spot
const BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="; // one clear pixel

function tileSource(info) {
  const { slide, width, height, zoom } = info;
  if (!zoom) {
    const side = Math.max(width, height);
    return { width, height, tileSize: side, minLevel: 0, maxLevel: 0, getTileUrl: () => BLANK };
  }
  return {
    width,
    height,
    tileSize: zoom.tile_size,
    tileOverlap: zoom.overlap,
    minLevel: zoom.min_level,
    maxLevel: zoom.max_level,
    getTileUrl: (level, column, row) => api.tileUrl(slide, level, column, row),
  };
}

/** Half the median distance between neighbours, for a slide that doesn't say how large its spots are. */
function guessRadius(x, y) {
  const sample = [];
  for (let i = 0; i < x.length; i += Math.ceil(x.length / 50)) {
    let least = Infinity;
    for (let j = 0; j < x.length; j += 1) if (j !== i) least = Math.min(least, Math.hypot(x[i] - x[j], y[i] - y[j]));
    if (Number.isFinite(least)) sample.push(least);
  }
  sample.sort((one, other) => one - other);
  return sample.length ? 0.32 * sample[sample.length >> 1] : 50;
}

export class SlideView {
  /** `stage` is the element to fill; `calls`: camera(), pick(index | -1), region(rectangle), hover(index, event). */
  constructor(stage, calls) {
    this.stage = stage;
    this.calls = calls;
    this.info = null;
    this.spots = null;
    this.marked = [];
    this.drawing = false;
    this.viewer = OpenSeadragon({
      element: stage.querySelector(".picture"),
      drawer: "canvas",
      showNavigationControl: false,
      keyboardNavEnabled: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      animationTime: CALM ? 0 : 0.35,
      maxZoomPixelRatio: 6,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.2,
      zoomPerScroll: 1.25,
      imageLoaderLimit: 6,
      preserveImageSizeOnResize: true, // a second view beside this one doesn't change its scale
      tabIndex: -1,
    });
    this.viewer.canvas.setAttribute("aria-hidden", "true");
    const layer = el("canvas", { class: "spots", "aria-hidden": "true" });
    this.ground = svg("g");
    this.marks = svg("svg", { class: "marks", "aria-hidden": "true" }, this.ground);
    this.viewer.canvas.append(layer, this.marks);
    this.layer = new SpotLayer(layer);
    this.rule = stage.querySelector(".scale-bar");
    this.overview = stage.querySelector(".overview");
    this.viewer.addHandler("update-viewport", () => this.#follow());
    this.viewer.addHandler("viewport-change", () => calls.camera(this));
    this.viewer.addHandler("canvas-click", (event) => this.#click(event));
    this.viewer.addHandler("tile-drawn", () => {
      if (!this.info || performance.getEntriesByName("slide drawn").length) return;
      performance.mark("slide drawn");
    });
    stage.addEventListener("pointermove", (event) => this.#hover(event));
    stage.addEventListener("pointerleave", () => calls.hover(this, -1));
    this.#rectangle();
  }

  /** Show a slide; resolves when its picture is open. */
  async open(info) {
    this.info = null;
    this.spots = null;
    this.layer.place(new Float32Array(0), new Float32Array(0), 0);
    this.setMarks([]);
    const opened = new Promise((resolve, reject) => {
      this.viewer.addOnceHandler("open", resolve);
      this.viewer.addOnceHandler("open-failed", () => reject(new Error(`The picture of ${info.slide} can't be shown.`)));
    });
    this.viewer.open(tileSource(info));
    await opened;
    this.info = info;
    this.#thumbnail();
    this.#follow();
  }

  /** The answer of /spots. */
  setSpots(spots) {
    const x = Float32Array.from(spots.x, (v) => v ?? NaN);
    const y = Float32Array.from(spots.y, (v) => v ?? NaN);
    this.spots = { ids: spots.ids, x, y, radius: spots.spot_diameter ? spots.spot_diameter / 2 : guessRadius(x, y) };
    this.layer.place(x, y, this.spots.radius);
  }

  /** {x, y, z}: centre in image pixels, screen pixels per image pixel. */
  camera() {
    if (!this.info || !this.viewer.world.getItemCount()) return null;
    const { viewport } = this.viewer;
    const centre = viewport.viewportToImageCoordinates(viewport.getCenter(false));
    return { x: centre.x, y: centre.y, z: viewport.viewportToImageZoom(viewport.getZoom(false)) };
  }

  /** The camera as it is this moment, in the middle of a movement too. */
  cameraNow() {
    const { viewport } = this.viewer;
    const centre = viewport.viewportToImageCoordinates(viewport.getCenter(true));
    return { x: centre.x, y: centre.y, z: viewport.viewportToImageZoom(viewport.getZoom(true)) };
  }

  setCamera({ x, y, z }, immediately = false) {
    const { viewport } = this.viewer;
    viewport.zoomTo(viewport.imageToViewportZoom(z), null, immediately);
    viewport.panTo(viewport.imageToViewportCoordinates(x, y), immediately);
  }

  home(immediately = false) {
    this.viewer.viewport.goHome(immediately);
  }

  /** Fill the view with the tissue: where the spots are. */
  fitSpots() {
    const [x, y] = [this.spots.x, this.spots.y].map((all) => all.filter((v) => !Number.isNaN(v)));
    if (!x.length) return;
    const [left, right] = [x.reduce((a, b) => Math.min(a, b)), x.reduce((a, b) => Math.max(a, b))];
    const [top, bottom] = [y.reduce((a, b) => Math.min(a, b)), y.reduce((a, b) => Math.max(a, b))];
    const margin = 3 * this.spots.radius + 0.04 * Math.max(right - left, bottom - top);
    const { viewport } = this.viewer;
    viewport.fitBounds(viewport.imageToViewportRectangle(left - margin, top - margin, right - left + 2 * margin, bottom - top + 2 * margin), true);
  }

  zoom(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  /** Pan by a share of the view. */
  pan(across, down) {
    const bounds = this.viewer.viewport.getBounds();
    this.viewer.viewport.panBy(new OpenSeadragon.Point(across * STEP * bounds.width, down * STEP * bounds.height));
    this.viewer.viewport.applyConstraints();
  }

  /** Bring a point into the middle of the view; `close` also zooms in until a spot is easy to see. */
  show(x, y, close = false) {
    if (Number.isNaN(x) || Number.isNaN(y)) return; // a spot without a place
    const { z } = this.camera();
    const diameter = 2 * this.spots.radius;
    this.setCamera({ x, y, z: close ? Math.max(z, 90 / diameter) : z });
  }

  /** Pan only if the point is out of sight or close to the edge. */
  keepInSight(x, y) {
    const { left, top, scale, width, height } = this.#frame();
    const [sx, sy] = [left + x * scale, top + y * scale];
    if (sx < 40 || sy < 60 || sx > width - 40 || sy > height - 40) this.show(x, y);
  }

  /** The part of the picture in sight, in image pixels. */
  sight() {
    const { left, top, scale, width, height } = this.#frame();
    const [x0, y0] = [Math.max(0, -left / scale), Math.max(0, -top / scale)];
    const x1 = Math.min(this.info.width, (width - left) / scale);
    const y1 = Math.min(this.info.height, (height - top) / scale);
    return { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
  }

  /** Rings and rectangles: {x, y, kind, text?} or {x, y, width, height, kind}, in image pixels. */
  setMarks(marks) {
    this.marked = marks.map((mark) => {
      const box = mark.width !== undefined;
      const shape = box
        ? [svg("rect", { class: "halo" }), svg("rect", { class: "line" })]
        : [svg("circle", { class: "halo" }), svg("circle", { class: "line" })];
      if (mark.text) shape.push(svg("text", { class: "halo" }, mark.text), svg("text", {}, mark.text));
      return { mark, shape, group: svg("g", { class: mark.kind }, ...shape) };
    });
    this.ground.replaceChildren(...this.marked.map(({ group }) => group));
    if (this.info) this.#placeMarks(this.#frame());
  }

  /** Index of the spot nearest to `from` in a direction (dx, dy), for the keyboard. */
  neighbour(from, dx, dy) {
    const { x, y } = this.spots;
    let [best, least] = [from, Infinity];
    for (let i = 0; i < x.length; i += 1) {
      const [ahead, aside] = [(x[i] - x[from]) * dx + (y[i] - y[from]) * dy, (x[i] - x[from]) * dy - (y[i] - y[from]) * dx];
      const far = ahead + 2 * Math.abs(aside);
      if (ahead > this.spots.radius / 2 && Math.abs(aside) <= ahead && far < least) [best, least] = [i, far];
    }
    return best;
  }

  /** Let the pointer draw a rectangle instead of panning. */
  drawRegion(on) {
    this.drawing = on;
    this.stage.classList.toggle("drawing", on);
    this.viewer.setMouseNavEnabled(!on);
  }

  #frame() {
    const { viewport } = this.viewer;
    const size = viewport.getContainerSize();
    const zero = viewport.pixelFromPoint(viewport.imageToViewportCoordinates(0, 0), true);
    const scale = viewport.viewportToImageZoom(viewport.getZoom(true));
    return { left: zero.x, top: zero.y, scale, width: size.x, height: size.y };
  }

  #follow() {
    if (!this.info || !this.viewer.world.getItemCount()) return;
    const frame = this.#frame();
    this.layer.follow(frame);
    this.#placeMarks(frame);
    this.#measure(frame);
  }

  #placeMarks(frame) {
    const set = (shape, values) => Object.entries(values).forEach(([name, value]) => shape.setAttribute(name, value));
    const radius = Math.max(7, (this.spots?.radius ?? 0) * this.layer.size * frame.scale + 2.5);
    for (const { mark, shape } of this.marked) {
      const [x, y] = [frame.left + mark.x * frame.scale, frame.top + mark.y * frame.scale];
      for (const one of shape) {
        if (one.tagName === "text") set(one, { x: x + radius * 0.75 + 2, y: y - radius * 0.75 - 2 });
        else if (one.tagName === "circle") set(one, { cx: x, cy: y, r: radius });
        else set(one, { x, y, width: mark.width * frame.scale, height: mark.height * frame.scale });
      }
    }
  }

  #measure({ left, top, scale, width, height }) {
    const { mpp } = this.info;
    this.rule.hidden = !mpp;
    if (mpp) {
      const longest = (140 * mpp) / scale;
      const ten = 10 ** Math.floor(Math.log10(longest));
      const length = [5, 2, 1].map((one) => one * ten).find((one) => one <= longest);
      this.rule.firstElementChild.style.width = `${(length * scale) / mpp}px`;
      this.rule.lastElementChild.textContent = length >= 1000 ? `${number(length / 1000)} mm` : `${number(length)} µm`;
    }
    const [box, whole] = [this.overview.lastElementChild.style, this.info];
    const share = (value, of) => `${100 * Math.min(1, Math.max(0, value / of))}%`;
    box.left = share(-left / scale, whole.width);
    box.top = share(-top / scale, whole.height);
    box.right = share(whole.width - (width - left) / scale, whole.width);
    box.bottom = share(whole.height - (height - top) / scale, whole.height);
    this.overview.hidden = !whole.zoom || whole.width * scale <= width * 1.05;
  }

  #thumbnail() {
    const { slide, zoom, width, height } = this.info;
    const picture = this.overview.firstElementChild;
    if (zoom) picture.src = api.thumbnailUrl(slide, 256);
    this.overview.style.aspectRatio = `${width} / ${height}`;
    this.overview.style.width = `${width >= height ? 110 : (110 * width) / height}px`;
  }

  #at(event) {
    const box = this.stage.getBoundingClientRect();
    const { left, top, scale } = this.#frame();
    const [sx, sy] = [event.clientX - box.left, event.clientY - box.top];
    return { x: (sx - left) / scale, y: (sy - top) / scale, scale };
  }

  #find({ x, y, scale }) {
    return this.spots ? this.layer.nearest(x, y, Math.max(this.spots.radius * this.layer.size, NEAR / scale)) : -1;
  }

  #click(event) {
    if (!event.quick || !this.spots || this.drawing) return;
    this.calls.pick(this, this.#find(this.#at(event.originalEvent)));
  }

  #hover(event) {
    if (!this.info || !this.spots || event.buttons) return;
    this.calls.hover(this, this.#find(this.#at(event)), event);
  }

  #rectangle() {
    const picture = this.stage.querySelector(".picture");
    let start = null;
    const box = (event) => {
      const end = this.#at(event);
      const [x, y] = [Math.min(start.x, end.x), Math.min(start.y, end.y)];
      return { x, y, width: Math.abs(end.x - start.x), height: Math.abs(end.y - start.y), kind: "region" };
    };
    const begin = (event) => {
      if (!this.drawing || !this.info || event.button !== 0) return;
      event.stopPropagation();
      start = this.#at(event);
      picture.setPointerCapture(event.pointerId);
    };
    picture.addEventListener("pointerdown", begin, true);
    picture.addEventListener("pointermove", (event) => start && this.setMarks([box(event)]), true);
    picture.addEventListener("pointercancel", () => (start = null), true);
    picture.addEventListener("pointerup", (event) => {
      if (!start) return;
      const drawn = box(event);
      start = null;
      if (drawn.width * this.#frame().scale > 6 && drawn.height * this.#frame().scale > 6) this.calls.region(this, drawn);
    }, true);
  }
}
