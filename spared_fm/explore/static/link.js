// Two views that move together.

export class Link {
  constructor() {
    this.lead = null; // the view the reader moves; the other follows
    this.offset = null; // of the other's centre, and the ratio of its zoom, in a unit both slides have
  }

  /** Follow nobody until the views are tied again. */
  pause() {
    this.offset = null;
    this.lead = null;
  }

  /** Keep the views, from now on, as they stand to each other. The unit is µm where both slides know it, else the slide's width. */
  tie({ a, b }, { split, linked }) {
    this.offset = null;
    if (!split || !linked || !a?.info || !b?.info) return;
    const micrometres = a.info.mpp && b.info.mpp;
    this.unit = new Map([a, b].map((pane) => [pane, micrometres ? pane.info.mpp : 1 / pane.info.width]));
    const [one, other] = [this.#place(a, a.view.camera()), this.#place(b, b.view.camera())];
    this.offset = { x: other.x - one.x, y: other.y - one.y, ratio: other.z / one.z };
    this.first = a;
  }

  /** `pane` has moved: bring the other along. */
  follow(pane, panes) {
    if (!this.offset || pane !== this.lead || !pane.info) return;
    const other = pane === panes.a ? panes.b : panes.a;
    if (!other?.info) return;
    const sign = pane === this.first ? 1 : -1;
    const { x, y, z } = this.#place(pane, pane.view.cameraNow());
    const unit = this.unit.get(other);
    other.view.setCamera(
      { x: (x + sign * this.offset.x) / unit, y: (y + sign * this.offset.y) / unit, z: z * this.offset.ratio ** sign * unit },
      true,
    );
  }

  #place(pane, { x, y, z }) {
    const unit = this.unit.get(pane);
    return { x: x * unit, y: y * unit, z: z / unit };
  }
}
