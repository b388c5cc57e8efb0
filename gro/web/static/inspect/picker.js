// Choosing: the step on a small curve, the prompt, the completion.

import { el, replace, svg } from "../base.js";
import { text } from "./heat.js";

const WIDTH = 600, HEIGHT = 70, EDGE = 6;

export function stepPicker(place, run, step, choose) {
  const { steps, curve } = run;
  const index = steps.indexOf(step);
  const at = curve ? curve.values[curve.steps.indexOf(step)] : null;
  const slider = el("input", {
    id: "step", type: "range", min: "0", max: String(steps.length - 1), step: "1", "aria-valuetext": `step ${step}`,
    onchange: (event) => choose(steps[Number(event.target.value)]),
    oninput: (event) => { told.textContent = said(steps[Number(event.target.value)], null); },
  });
  slider.value = String(index);
  const said = (number, value) => `${number}${value === null || value === undefined ? "" : `, ${curve.name} ${text(value)}`}`;
  const told = el("output", { for: "step" }, said(step, at));
  const turn = (by, label, sign) => el("button", {
    id: `step${by}`, "aria-label": label, disabled: !(index + by in steps), onclick: () => choose(steps[index + by]),
  }, sign);
  replace(
    place,
    el("div", { class: "row steps" }, el("label", { for: "step" }, "Step"), turn(-1, "Previous step", "‹"), slider, turn(1, "Next step", "›"), told),
    curve ? drawCurve(curve, steps, step, choose) : null,
  );
}

function drawCurve(curve, steps, step, choose) {
  const points = curve.steps.map((s, i) => [s, curve.values[i]]).filter(([, value]) => value !== null);
  if (!points.length) return null;
  const first = Math.min(steps[0], points[0][0]), last = Math.max(steps[steps.length - 1], points[points.length - 1][0]);
  const values = points.map(([, value]) => value);
  const low = Math.min(...values), high = Math.max(...values);
  const x = (s) => EDGE + ((s - first) / Math.max(last - first, 1)) * (WIDTH - 2 * EDGE);
  const y = (v) => HEIGHT - EDGE - ((v - low) / (high - low || 1)) * (HEIGHT - 2 * EDGE);
  const here = points.find(([s]) => s === step);
  const nearest = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const wanted = first + ((event.clientX - box.left) / box.width) * (last - first);
    choose(steps.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a)));
  };
  return el("figure", { class: "curve" },
    svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", onclick: nearest,
      "aria-label": `${curve.name} from step ${first} to ${last}: lowest ${text(low)}, highest ${text(high)}`,
    },
    svg("polyline", { points: points.map(([s, v]) => `${x(s)},${y(v)}`).join(" ") }),
    svg("line", { x1: x(step), x2: x(step), y1: 0, y2: HEIGHT }),
    here ? svg("path", { d: `M${x(step)} ${y(here[1])}h0.001` }) : null),
    el("figcaption", { class: "faint" }, `${curve.name}: ${text(low)} to ${text(high)}`));
}

export function promptList(place, groups, chosen, choose) {
  replace(place, el("h2", {}, `Prompts (${groups.length} recorded)`),
    el("ul", { class: "list" }, groups.map((group) => el("li", {},
      el("button", { id: `prompt-${group.group}`, "aria-current": group === chosen ? "true" : null, onclick: () => choose(group) },
        el("span", { class: "clip" }, group.prompt || "(empty)"), el("small", {}, rewardsOf(group)))))));
}

function rewardsOf(group) {
  const rewards = group.rows.map((row) => row.reward).filter((reward) => reward !== null);
  if (!rewards.length) return `${group.rows.length} without reward`;
  const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
  return `${group.rows.length}, mean reward ${text(mean)}`;
}

export function groupList(place, group, view, { open, beside }) {
  const rewards = group.rows.map((row) => row.reward).filter((reward) => reward !== null);
  const low = Math.min(...rewards), high = Math.max(...rewards);
  replace(place, el("h2", {}, `Completions (${group.rows.length})`),
    el("ul", { class: "list" }, group.rows.map((row) => {
      const bar = el("span", { class: "bar", "aria-hidden": "true" });
      const level = row.reward === null ? 0 : high > low ? (row.reward - low) / (high - low) : 1;
      bar.style.setProperty("--part", `${Math.round(level * 100)}%`);
      const current = view.row === row.row;
      return el("li", { class: "completion" },
        el("button", { id: `row-${row.row}`, "aria-current": current ? "true" : null, onclick: () => open(row.row) },
          el("span", { class: "clip" }, row.text || "(empty)"),
          el("small", {}, `${row.row}: reward ${text(row.reward)}, ${row.length} tokens${row.finish === "length" ? ", cut off" : ""}`), bar),
        el("button", {
          id: `beside-${row.row}`, class: "beside", disabled: current, "aria-pressed": view.beside === row.row ? "true" : "false",
          "aria-label": `Completion ${row.row} beside the chosen one`, title: "beside", onclick: () => beside(row.row),
        }, "⇆"));
    })));
}
