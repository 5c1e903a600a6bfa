// The spots of a slide on a canvas over the picture.
//
// The canvas is drawn larger than the view and then only moved while the reader pans (the browser shifts a finished
// bitmap, however many spots are on it); it is drawn anew when the view leaves what was drawn, and once a zoom rests.

const MARGIN = 0.35; // drawn beyond each edge, as a share of the view
const MOST_PIXELS = 12e6;
const REST = 90; // ms without change of zoom after which the spots are sharpened

export class SpotLayer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.x = this.y = new Float32Array(0);
    this.radius = 0;
    this.groups = [];
    this.drawn = null; // {left, top, right, bottom (image pixels), scale}
    this.view = null;
    this.draws = 0;
    this.size = 1;
    this.resting = 0;
  }

  /** Where the spots are: image pixels, NaN where a spot has no place; `radius` in image pixels. */
  place(x, y, radius) {
    this.x = x;
    this.y = y;
    this.radius = radius;
    this.groups = [];
    this.redraw();
  }

  /** Colours as `colouring` gives them, or null for outlines; `codes` and `focus` pick one category out. */
  paint(colours, codes = null, focus = null) {
    const groups = new Map();
    for (let i = 0; i < this.x.length; i += 1) {
      if (Number.isNaN(this.x[i])) continue;
      const known = colours !== null && colours.known[i] === 1;
      const [r, g, b] = known ? colours.rgb.subarray(3 * i, 3 * i + 3) : [0, 0, 0];
      const dimmed = focus !== null && (!known || codes[i] !== focus);
      const key = known ? (dimmed ? 1 << 24 : 0) | (r << 16) | (g << 8) | b : -1;
      if (!groups.has(key)) groups.set(key, { fill: known ? `rgb(${r} ${g} ${b})` : null, dimmed, spots: [] });
      groups.get(key).spots.push(i);
    }
    this.outlines = colours === null;
    this.groups = [...groups.values()];
    this.redraw();
  }

  /** Spot size as a multiple of the true one, and opacity. */
  style(size, opacity) {
    this.canvas.style.opacity = opacity;
    if (size === this.size) return;
    this.size = size;
    this.redraw();
  }

  /** Follow the picture: screen position of image point (0, 0), screen pixels per image pixel, size of the view. */
  follow(view) {
    this.view = view;
    if (!this.drawn) {
      this.redraw();
      return;
    }
    const zoomed = view.scale / this.drawn.scale;
    const inside =
      -view.left >= this.drawn.left * view.scale &&
      -view.top >= this.drawn.top * view.scale &&
      view.width - view.left <= this.drawn.right * view.scale &&
      view.height - view.top <= this.drawn.bottom * view.scale;
    const settled = Math.abs(zoomed - 1) < 1e-3;
    if ((!inside && zoomed > 0.8) || zoomed < 0.5 || zoomed > 2.5) this.redraw();
    else {
      if (!settled) this.#sharpenSoon();
      this.#move();
    }
  }

  /** Nearest spot to an image point, at most `reach` image pixels away; -1 if there is none. */
  nearest(px, py, reach) {
    let best = -1;
    let least = reach * reach;
    for (let i = 0; i < this.x.length; i += 1) {
      const dx = this.x[i] - px;
      const dy = this.y[i] - py;
      const squared = dx * dx + dy * dy;
      if (squared <= least) {
        least = squared;
        best = i;
      }
    }
    return best;
  }

  redraw() {
    if (!this.view) return;
    clearTimeout(this.resting);
    const { left, top, scale, width, height } = this.view;
    const ratio = Math.min(window.devicePixelRatio, Math.sqrt(MOST_PIXELS / ((1 + 2 * MARGIN) ** 2 * width * height)));
    const [beyondX, beyondY] = [MARGIN * width, MARGIN * height];
    const [wide, high] = [Math.ceil((width + 2 * beyondX) * ratio), Math.ceil((height + 2 * beyondY) * ratio)];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
      this.canvas.style.width = `${wide / ratio}px`;
      this.canvas.style.height = `${high / ratio}px`;
    } else {
      this.context.clearRect(0, 0, wide, high);
    }
    this.drawn = {
      left: (-left - beyondX) / scale,
      top: (-top - beyondY) / scale,
      right: (width - left + beyondX) / scale,
      bottom: (height - top + beyondY) / scale,
      scale,
    };
    this.#draw(ratio * scale);
    this.draws += 1;
    this.#move();
  }

  #sharpenSoon() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.redraw(), REST);
  }

  #move() {
    const { left, top, scale } = this.view;
    const x = left + this.drawn.left * scale;
    const y = top + this.drawn.top * scale;
    this.canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale / this.drawn.scale})`;
  }

  #draw(scale) {
    const { context, drawn, x, y } = this;
    const radius = Math.max(this.radius * this.size * scale, 1);
    const reach = radius / scale;
    context.lineWidth = Math.max(1.5, Math.min(3, radius / 6));
    for (const { fill, dimmed, spots } of this.groups) {
      context.globalAlpha = dimmed ? 0.12 : 1;
      context.beginPath();
      for (const i of spots) {
        if (x[i] + reach < drawn.left || x[i] - reach > drawn.right) continue;
        if (y[i] + reach < drawn.top || y[i] - reach > drawn.bottom) continue;
        const cx = (x[i] - drawn.left) * scale;
        const cy = (y[i] - drawn.top) * scale;
        if (radius < 1.6) {
          context.rect(cx - radius, cy - radius, 2 * radius, 2 * radius);
        } else {
          context.moveTo(cx + radius, cy);
          context.arc(cx, cy, radius, 0, 2 * Math.PI);
        }
      }
      if (fill) {
        context.fillStyle = fill;
        context.fill();
      } else {
        context.strokeStyle = this.outlines ? "rgb(0 114 178)" : "rgb(120 120 120)";
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }
}
