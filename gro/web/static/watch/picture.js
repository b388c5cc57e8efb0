// The picture of a panel, from its numbers alone: where things lie (a frame), what is drawn there, what a legend says.
//
// paint(line, index) -> {colour, dash} of a line, wherever it is asked for.

import { svg } from "../base.js";
import { area, nearest, number, padded, path, place, range, ticks } from "./scale.js";

const LEFT = 54, RIGHT = 8, TOP = 6, LINE = 16;
const HEIGHT = 168, BIG = 380;
const STEP = "step", FRONTIER = "frontier";

// Where the numbers of a panel lie in a picture of this width; null where there is nothing to draw.
export function frameOf(panel, width, big) {
  const xs = range(panel.lines.map((line) => line.steps));
  const ys = range(panel.lines.flatMap((line) => [line.values, line.raw, line.low, line.high]));
  if (!xs || !ys) return null;
  const height = big ? BIG : HEIGHT, floor = height - (panel.x === STEP ? 1 : 2) * LINE - 6;
  const [left, right] = xs[1] > xs[0] ? xs : padded(xs), [low, high] = padded(ys), across = width - LEFT - RIGHT;
  return {
    panel, big, width, height, floor, left, right, low, high,
    x: (value) => LEFT + ((value - left) / (right - left)) * across,
    y: (value) => floor - ((value - low) / (high - low)) * (floor - TOP),
    under: (pixel) => left + Math.max(0, Math.min(1, (pixel - LEFT) / across)) * (right - left),
    stops: stops(panel),
  };
}

// Where the crosshair can stand: every place on the horizontal axis at which something is drawn.
function stops(panel) {
  const all = new Set();
  for (const line of panel.lines) line.steps.forEach((step, i) => { if (line.values[i] !== null) all.add(step); });
  return [...all].sort((a, b) => a - b);
}

// marks: [{at, level}], vertical lines at their places on the panel's axis, of those that have one; cursor: an element to lie on top.
export function picture(frame, paint, marks, cursor) {
  const { panel, width, height, floor, left, right, x } = frame;
  const there = marks.filter(({ at }) => at[panel.x] >= left && at[panel.x] <= right);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    axes(frame),
    there.map(({ at, level }) => svg("line", { class: `mark ${level}`, x1: x(at[panel.x]), x2: x(at[panel.x]), y1: TOP, y2: floor })),
    panel.lines.map((line, index) => lineOf(frame, line, paint(line, index))), cursor);
}

function lineOf({ panel, big, x, y }, line, { colour, dash }) {
  const lone = line.steps.length === 1;
  const points = lone || (panel.key === FRONTIER && line.steps.length < 200 && line.source >= 0);
  const dot = (at, i) => line.values[i] === null ? null
    : svg("circle", { cx: x(at), cy: y(line.values[i]), r: lone || big ? 2.4 : 1.3 });
  return svg("g", { class: `line ${colour}`, "data-label": line.label },
    line.low ? svg("path", { class: "band", d: area(line.steps, line.low, line.high, x, y) }) : null,
    line.raw ? svg("path", { class: "raw", d: path(line.steps, line.raw, x, y) }) : null,
    svg("path", { class: "curve", d: path(line.steps, line.values, x, y), "stroke-dasharray": dash }),
    points ? line.steps.map(dot) : null);
}

function axes({ panel, x, y, width, floor, left, right, low, high }) {
  const across = ticks(left, right, width / 55, panel.x === STEP), up = ticks(low, high, floor / 30);
  const centre = (value) => (x(value) > width - 26 ? "end" : "middle");
  return svg("g", { class: "axes" },
    up.map((value) => [
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)),
    ]),
    across.map((value) => svg("text", { x: x(value), y: floor + LINE, "text-anchor": centre(value) }, place(panel.x, value))),
    panel.x === STEP ? null : svg("text", { x: width - RIGHT, y: floor + 2 * LINE, "text-anchor": "end" }, panel.x));
}

// The crosshair at a value of the horizontal axis, with a point on each line.
export function crosshair({ panel, x, y, floor }, at, paint) {
  return [
    svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: floor }),
    panel.lines.map((line, index) => {
      const i = nearest(line.steps, at);
      if (i < 0 || line.values[i] === null) return null;
      return svg("circle", { class: paint(line, index).colour, cx: x(line.steps[i]), cy: y(line.values[i]), r: 3.5 });
    }),
  ];
}

// What stands beside a line's name: its value at the crosshair, or, where that is null, its last.
// From a line that has none within a pixel, its nearest, and where that is.
export function valueOf(frame, line, at) {
  const i = at === null ? line.values.findLastIndex((value) => value !== null) : nearest(line.steps, at);
  if (i < 0) return "–";
  const band = line.low && line.low[i] !== null ? ` ± ${number(Number(((line.high[i] - line.low[i]) / 2).toPrecision(2)))}` : "";
  const elsewhere = at !== null && Math.abs(frame.x(line.steps[i]) - frame.x(at)) > 1 ? ` at ${place(frame.panel.x, line.steps[i])}` : "";
  return `${number(line.values[i])}${band}${elsewhere}`;
}

export function swatch(colour, dash) {
  return svg("svg", { class: `swatch ${colour}`, width: 22, height: 10, "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, "stroke-dasharray": dash }));
}
