// One panel: lines with bands, what was recorded behind what is smoothed, marks, and a crosshair that says the values.
//
// The element stays while its panel changes, so that focus and crosshair stay; what has not changed is not drawn again.
// `look` tells what the page knows:
//   paint(panel, line, index) -> {colour, dash}   of a line
//   marks() -> [{at: {axis: place}, level}]       vertical lines, on the axes on which they have a place
//   say(text)                                     reads something out
//   enlarge(key)                                  was asked for by click or Enter
//   file(key)                                     the address of a picture of the panel, but for &form=…

import { el, replace, svg } from "../base.js";
import { crosshair, frameOf, picture, swatch, valueOf } from "./picture.js";
import { nearest, place } from "./scale.js";

const FORMS = ["svg", "png", "pdf"];
const FALLBACK = 380; // pixels, as long as a panel has no width
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) target.redraw?.();
});

export function chart(key, look) {
  const title = el("button", { class: "title", id: `title-${key}`, onclick: () => look.enlarge(key) });
  const last = el("span", { class: "last faint" });
  const files = el("span", { class: "files" });
  const drawing = el("div", { class: "drawing" });
  const plot = el("div", { class: "plot", id: `plot-${key}`, tabindex: "0", role: "group" }, drawing);
  const legend = el("ul", { class: "key" });
  const element = el("section", { class: "card panel", id: `panel-${key}` },
    el("div", { class: "row spread" }, title, files, last), plot, legend);
  const state = { panel: null, big: false, at: null, frame: null, cursor: null, drawn: "", offered: "" };

  const shown = () => `${state.panel.x} ${place(state.panel.x, state.at)}`;
  const paint = (line, index) => look.paint(state.panel, line, index);

  function update(panel, big) {
    const at = panel.x === state.panel?.x ? state.at : null; // a place on another axis is none
    Object.assign(state, { panel, big, at });
    const wanted = JSON.stringify([panel, big, look.file(key), look.marks(), panel.lines.map(paint)]);
    if (wanted === state.drawn) return;
    state.drawn = wanted;
    element.classList.toggle("big", big);
    replace(title, panel.title);
    offer(big ? look.file(key) : "");
    title.setAttribute("aria-expanded", big ? "true" : "false");
    plot.setAttribute("aria-label", `${panel.title}: ${panel.lines.length === 1 ? "1 line" : `${panel.lines.length} lines`}. `
      + "Arrow keys read values, Enter enlarges.");
    draw();
  }

  // Links to files of the picture; those that lead to the same stay, with the focus.
  function offer(address) {
    if (address === state.offered) return;
    state.offered = address;
    replace(files, address && FORMS.map((form) => el("a", { href: `${address}&form=${form}`, download: "", "aria-label": `${state.panel.title} as ${form.toUpperCase()}` }, form.toUpperCase())));
  }

  function draw() {
    const { panel, big } = state;
    state.frame = frameOf(panel, plot.clientWidth || FALLBACK, big);
    state.cursor = svg("g", { class: "cursor" });
    replace(drawing, state.frame ? picture(state.frame, paint, look.marks(), state.cursor) : el("p", { class: "faint" }, "nothing to draw"));
    move(state.frame && state.at);
  }

  // Puts the crosshair at a value of the horizontal axis; null takes it away.
  function move(at) {
    state.at = at;
    if (state.frame) replace(state.cursor, at === null ? null : crosshair(state.frame, at, paint));
    replace(last, at === null ? state.panel.last || state.panel.metric : shown());
    replace(legend, state.panel.lines.map((line, index) => {
      const { colour, dash } = paint(line, index);
      return el("li", {}, swatch(colour, dash), el("span", { class: "name" }, line.label || state.panel.title),
        el("span", { class: "value" }, valueOf(state.frame, line, at)));
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
      const said = state.panel.lines.slice(0, 12).map((line) => `${line.label || state.panel.title} ${valueOf(state.frame, line, state.at)}`);
      look.say(`${shown()}: ${said.join("; ")}`);
    }
  }

  function hover(event) {
    if (!state.frame) return;
    const { under, stops } = state.frame;
    move(stops[nearest(stops, under(event.clientX - plot.getBoundingClientRect().left))]);
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
