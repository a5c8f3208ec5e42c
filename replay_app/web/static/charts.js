// Charts as SVG. A chart is a picture with a sentence, and its numbers are in a table beside it.

import { Grid, h, setAttribute, setText, svg } from "./dom.js";
import { clock, pace, short, timeCell } from "./format.js";

const WIDTH = 600;
const HEIGHT = 150;
const LEFT = 46;
const BOTTOM = 20;
const TOP = 8;
const STEPS = [1, 2, 5, 10];
const MOST_ROWS = 60;

// The next round number that is not below a value.
export function roundUp(value) {
  if (value <= 0) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return STEPS.find((step) => step * size >= value) * size;
}

function path(points) {
  return points.map(([x, y], number) => `${number ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

// Events a second as one small line, with the cap as a dashed line.
export class Sparkline {
  static WIDTH = 240;
  static HEIGHT = 44;
  #area = svg("path", { class: "area" });
  #line = svg("path", { class: "line" });
  #cap = svg("line", { class: "cap", x1: 0, x2: Sparkline.WIDTH });

  constructor() {
    const box = `0 0 ${Sparkline.WIDTH} ${Sparkline.HEIGHT}`;
    this.element = svg("svg", { class: "spark", role: "img", viewBox: box, preserveAspectRatio: "none" }, this.#area, this.#line, this.#cap);
  }

  show(speeds, cap) {
    const { WIDTH: width, HEIGHT: height } = Sparkline;
    const most = 1.1 * Math.max(cap ?? 0, ...speeds.map((one) => one.speed), 0.001);
    const [first, last] = [speeds[0]?.at ?? 0, speeds.at(-1)?.at ?? 1];
    const y = (speed) => height - 1 - (speed / most) * (height - 3);
    const points = speeds.map(({ at, speed }) => [((at - first) / Math.max(1, last - first)) * width, y(speed)]);
    setAttribute(this.#line, "d", points.length > 1 ? path(points) : null);
    setAttribute(this.#area, "d", points.length > 1 ? `${path(points)}L${width} ${height}L0 ${height}Z` : null);
    const hasCap = cap !== null && cap !== undefined;
    setAttribute(this.#cap, "visibility", hasCap ? null : "hidden");
    if (hasCap) {
      setAttribute(this.#cap, "y1", y(cap).toFixed(1));
      setAttribute(this.#cap, "y2", y(cap).toFixed(1));
    }
    const now = speeds.length ? `now ${pace(speeds.at(-1).speed)}` : "not known yet";
    setAttribute(this.element, "aria-label", `Events a second: ${now}${hasCap ? `, at most ${pace(cap)}` : ", no limit"}`);
  }
}

// Lines over time. `lines` are [{name, label}]; `unit` says numbers, also with digits for the axis.
export class LineChart {
  #lines;
  #paths;
  #unit;
  #svg;
  #ticks = svg("g", { class: "ticks" });
  #cap = svg("line", { class: "cap", x1: LEFT, x2: WIDTH });
  #summary = h("p", { class: "quiet chart-note" });
  #values = new Map();
  #grid;
  #empty = h("p", { class: "quiet" }, "Too few points for a chart.");

  constructor(title, lines, unit) {
    this.#lines = lines;
    this.#unit = unit;
    this.#paths = lines.map((_, number) => svg("path", { class: `line line-${number}` }));
    this.#svg = svg("svg", { class: "chart", role: "img", viewBox: `0 0 ${WIDTH} ${HEIGHT}` }, this.#ticks, ...this.#paths, this.#cap);
    this.#grid = new Grid(title, ["Until", ...lines.map((line) => ({ text: line.label, number: true }))], MOST_ROWS);
    const legend = lines.map((line, number) => {
      const value = h("b");
      this.#values.set(line.name, value);
      return h("span", { class: `key key-${number}` }, line.label, " ", value);
    });
    const table = h("details", { class: "as-table" }, h("summary", {}, `${title} as a table`), this.#grid.element);
    this.element = h("figure", { class: "figure" }, h("figcaption", {}, h("h3", {}, title), h("span", { class: "legend" }, ...legend)), this.#empty, this.#svg, this.#summary, table);
    this.title = title;
  }

  // `steps` are [{at, NAME: value, ...}], oldest first.
  show(steps, { cap = null, least = 0 } = {}) {
    const isEmpty = steps.length < 2;
    this.#empty.hidden = !isEmpty;
    this.#svg.toggleAttribute("hidden", isEmpty);
    const all = steps.flatMap((step) => this.#lines.map((line) => step[line.name] ?? 0));
    const most = roundUp(Math.max(least, cap ?? 0, ...all));
    const [first, last] = [steps[0]?.at ?? 0, steps.at(-1)?.at ?? 1];
    const x = (at) => LEFT + ((at - first) / Math.max(1, last - first)) * (WIDTH - LEFT);
    const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
    this.#lines.forEach((line, number) => {
      setAttribute(this.#paths[number], "d", isEmpty ? null : path(steps.map((step) => [x(step.at), y(step[line.name] ?? 0)])));
      setText(this.#values.get(line.name), steps.length ? this.#unit(steps.at(-1)[line.name] ?? 0) : "");
    });
    setAttribute(this.#cap, "visibility", cap === null ? "hidden" : null);
    setAttribute(this.#cap, "y1", cap === null ? 0 : y(cap));
    setAttribute(this.#cap, "y2", cap === null ? 0 : y(cap));
    if (!isEmpty) this.#showTicks(most, x, y, first, last);
    const ends = this.#lines.map((line) => `${line.label} ${this.#unit(steps.at(-1)?.[line.name] ?? 0)}`).join(", ");
    setAttribute(this.#svg, "aria-label", `${this.title}. At the end: ${ends}.`);
    setText(this.#summary, cap === null ? "" : `Dashed: the rate, at most ${pace(cap)} events a second.`);
    this.#grid.show(
      steps
        .slice(-MOST_ROWS)
        .reverse()
        .map((step) => [timeCell(new Date(step.at).toISOString()), ...this.#lines.map((line) => this.#unit(step[line.name] ?? 0))]),
    );
  }

  #showTicks(most, x, y, first, last) {
    const version = `${most} ${first} ${last}`;
    if (this.#ticks.dataset.version === version) return;
    this.#ticks.dataset.version = version;
    const rows = [0, 0.5, 1].flatMap((share) => [
      svg("line", { class: "grid-line", x1: LEFT, x2: WIDTH, y1: y(share * most), y2: y(share * most) }),
      svg("text", { x: LEFT - 6, y: y(share * most) + 4, "text-anchor": "end" }, this.#unit(share * most, short)),
    ]);
    const middle = (first + last) / 2;
    const columns = [[first, "start"], [middle, "middle"], [last, "end"]].map(([at, anchor]) =>
      svg("text", { x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, clock(at)));
    this.#ticks.replaceChildren(...rows, ...columns);
  }
}
