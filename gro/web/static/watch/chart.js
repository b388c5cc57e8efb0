// One panel: lines with bands, what was recorded behind what is smoothed, marks, and a crosshair that says the values.
//
// The element stays while its panel changes, so that focus and crosshair stay.  `look` tells what the page knows:
//   paint(panel, line, index) -> {colour, dash}   of a line
//   marks() -> [{step, level}]                    vertical lines, where the horizontal axis is the step
//   say(text)                                     reads something out
//   enlarge(key)                                  was asked for by click or Enter

import { el, replace, svg } from "../base.js";
import { area, nearest, number, padded, path, range, ticks } from "./scale.js";

const LEFT = 54, RIGHT = 8, TOP = 6, LINE = 16;
const FALLBACK = 380;
const STEP = "step";
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) target.redraw?.();
});

export function chart(key, look) {
  const title = el("button", { class: "title", id: `title-${key}`, onclick: () => look.enlarge(key) });
  const last = el("span", { class: "last faint" });
  const drawing = el("div", { class: "drawing" });
  const plot = el("div", { class: "plot", id: `plot-${key}`, tabindex: "0", role: "group" }, drawing);
  const legend = el("ul", { class: "key" });
  const element = el("section", { class: "card panel", id: `panel-${key}` },
    el("div", { class: "row spread" }, title, last), plot, legend);
  const state = { panel: null, big: false, at: null, frame: null };

  const shown = () => `${state.panel.x} ${number(state.at)}`;

  function update(panel, big) {
    Object.assign(state, { panel, big });
    element.classList.toggle("big", big);
    replace(title, panel.title);
    title.setAttribute("aria-expanded", big ? "true" : "false");
    plot.setAttribute("aria-label", `${panel.title}: ${panel.lines.length === 1 ? "1 line" : `${panel.lines.length} lines`}. `
      + "Arrow keys read values, Enter enlarges.");
    draw();
  }

  function draw() {
    const { panel, big } = state;
    const width = plot.clientWidth || FALLBACK, height = big ? 380 : 168;
    const floor = height - (panel.x === STEP ? 1 : 2) * LINE - 6;
    const xs = range(panel.lines.map((line) => line.steps));
    const ys = range(panel.lines.flatMap((line) => [line.values, line.raw, line.low, line.high]));
    if (!xs || !ys) {
      state.frame = null;
      replace(drawing, el("p", { class: "faint" }, "nothing to draw"));
      return drawLegend();
    }
    const [left, right] = xs[1] > xs[0] ? xs : padded(xs), [low, high] = padded(ys);
    const x = (value) => LEFT + ((value - left) / (right - left)) * (width - LEFT - RIGHT);
    const y = (value) => floor - ((value - low) / (high - low)) * (floor - TOP);
    const cursor = svg("g", { class: "cursor" });
    state.frame = { width, floor, left, right, x, y, cursor, stops: stops(panel) };
    replace(drawing, svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      axes(state.frame, low, high, panel.x), marks(state.frame), panel.lines.map(lineOf), cursor));
    move(state.at);
  }

  function lineOf(line, index) {
    const { x, y } = state.frame, { colour, dash } = look.paint(state.panel, line, index);
    const lone = line.steps.length === 1, points = lone || (state.panel.x !== STEP && line.steps.length < 200);
    const dot = (at, i) => line.values[i] === null ? null
      : svg("circle", { cx: x(at), cy: y(line.values[i]), r: lone || state.big ? 2.4 : 1.3 });
    return svg("g", { class: `line ${colour}`, "data-label": line.label },
      line.low ? svg("path", { class: "band", d: area(line.steps, line.low, line.high, x, y) }) : null,
      line.raw ? svg("path", { class: "raw", d: path(line.steps, line.raw, x, y) }) : null,
      svg("path", { class: "curve", d: path(line.steps, line.values, x, y), "stroke-dasharray": dash }),
      points && line.source >= 0 ? line.steps.map(dot) : null);
  }

  function marks({ x, floor, left, right }) {
    if (state.panel.x !== STEP) return null;
    return look.marks().filter(({ step }) => step >= left && step <= right)
      .map(({ step, level }) => svg("line", { class: `mark ${level}`, x1: x(step), x2: x(step), y1: TOP, y2: floor, "data-step": step }));
  }

  // Puts the crosshair at a value of the horizontal axis; null takes it away.
  function move(at) {
    state.at = at;
    if (state.frame) {
      const { cursor, x, y, floor } = state.frame;
      replace(cursor, at === null ? null : [
        svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: floor }),
        state.panel.lines.map((line, index) => {
          const i = nearest(line.steps, at);
          if (i < 0 || line.values[i] === null) return null;
          return svg("circle", { class: look.paint(state.panel, line, index).colour, cx: x(line.steps[i]), cy: y(line.values[i]), r: 3.5 });
        }),
      ]);
    }
    drawLegend();
  }

  // What stands beside a line's name: its value at the crosshair, or its last.
  function valueOf(line) {
    const i = state.at === null ? line.values.findLastIndex((value) => value !== null) : nearest(line.steps, state.at);
    if (i < 0) return "–";
    const band = line.low && line.low[i] !== null ? ` ± ${number(Number(((line.high[i] - line.low[i]) / 2).toPrecision(2)))}` : "";
    const elsewhere = state.at !== null && line.steps[i] !== state.at ? ` at ${number(line.steps[i])}` : "";
    return `${number(line.values[i])}${band}${elsewhere}`;
  }

  function drawLegend() {
    const { panel, at } = state;
    replace(last, at === null ? panel.last || panel.metric : shown());
    replace(legend, panel.lines.map((line, index) => {
      const { colour, dash } = look.paint(state.panel, line, index);
      return el("li", {}, swatch(colour, dash), el("span", { class: "name" }, line.label || panel.title),
        el("span", { class: "value" }, valueOf(line)));
    }));
  }

  function walk(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.target !== plot || event.ctrlKey || event.altKey || event.metaKey || !state.frame) return;
    if (event.key === "Enter") {
      event.preventDefault();
      look.enlarge(key);
    } else if (event.key === "Escape" && state.at !== null) {
      event.stopPropagation();
      move(null);
    } else if (event.key in moves) {
      event.preventDefault();
      const { stops: all } = state.frame;
      const here = state.at === null ? (moves[event.key] > 0 ? -1 : all.length) : nearest(all, state.at);
      move(all[Math.max(0, Math.min(all.length - 1, here + moves[event.key]))]);
      const said = state.panel.lines.slice(0, 12).map((line) => `${line.label || state.panel.title} ${valueOf(line)}`);
      look.say(`${shown()}: ${said.join("; ")}`);
    }
  }

  function hover(event) {
    if (!state.frame) return;
    const { left, right, width, stops: all } = state.frame;
    const inside = (event.clientX - plot.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
    move(all[nearest(all, left + Math.max(0, Math.min(1, inside)) * (right - left))]);
  }

  plot.addEventListener("keydown", walk);
  plot.addEventListener("pointermove", hover);
  plot.addEventListener("pointerleave", () => move(null));
  plot.addEventListener("blur", () => move(null));
  plot.addEventListener("click", (event) => { if (event.pointerType !== "touch") look.enlarge(key); });
  drawing.redraw = () => { if (state.panel && plot.clientWidth !== state.frame?.width) draw(); };
  resized.observe(drawing);
  return { element, update, forget: () => resized.unobserve(drawing) };
}

export function swatch(colour, dash) {
  return svg("svg", { class: `swatch ${colour}`, width: 22, height: 10, "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, "stroke-dasharray": dash }));
}

// Where the crosshair can stand: every place on the horizontal axis at which something is drawn.
function stops(panel) {
  const all = new Set();
  for (const line of panel.lines) line.steps.forEach((step, i) => { if (line.values[i] !== null) all.add(step); });
  return [...all].sort((a, b) => a - b);
}

function axes({ x, y, width, floor, left, right }, low, high, name) {
  const across = ticks(left, right, width / 55, name === STEP), up = ticks(low, high, floor / 30);
  const centre = (value) => (x(value) > width - 26 ? "end" : "middle");
  return svg("g", { class: "axes" },
    up.map((value) => [
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)),
    ]),
    across.map((value) => svg("text", { x: x(value), y: floor + LINE, "text-anchor": centre(value) }, number(value))),
    name === STEP ? null : svg("text", { x: width - RIGHT, y: floor + 2 * LINE, "text-anchor": "end" }, name));
}
