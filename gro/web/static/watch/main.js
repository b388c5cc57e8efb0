// gro watch: runs on one side, panels on the other, drawn from one view (view.js) and from what the server says.

import { el, get, keys, notice, replace } from "../base.js";
import { chart } from "./chart.js";
import { alarmList, runList, settings } from "./lists.js";
import { live } from "./live.js";
import { sampler } from "./samples.js";
import { address, AXES, fromAddress, isOn, MANY, switched } from "./view.js";

const COLOURS = 6, DASHES = [null, "7 3", "2 3", "9 3 2 3"];
const PAUSE = 1000; // from one answer to the next question, where nobody has touched anything
const place = (name, label) => el("section", { id: `part-${name}`, "aria-label": label });
const parts = {
  runs: place("runs", "Runs"), alarms: place("alarms", "Alarms"), samples: place("samples", "Samples over time"),
  settings: place("settings", "Settings"), panels: el("div", { id: "panels" }),
};
const data = { runs: [], smooth: 0, panels: [], sources: [], colours: {}, without: [], alarms: [] };
const charts = new Map();
let view, samples;

function go(changes, { quiet = false } = {}) {
  const before = view;
  view = { ...view, ...changes };
  const hash = address(view, data.smooth);
  if (hash !== location.hash) history[quiet ? "replaceState" : "pushState"](null, "", hash || location.pathname);
  show(before);
}

// Draws what differs from the view before.
function show(before) {
  controls();
  drawRuns();
  if (query() !== query(before)) askPanels(true);
  else drawPanels();
  if (chosen(before).join() !== chosen().join()) askLists();
  samples.update();
}

const drawn = (asked = view) => data.runs.filter((run) => isOn(asked, data.runs, run));
const chosen = (asked = view) => drawn(asked).map((run) => run.name);

function query(asked = view) {
  const told = new URLSearchParams(drawn(asked).filter((run) => run.status !== "unread").map((run) => ["run", run.name]));
  const flags = { smooth: asked.smooth, seeds: Number(asked.seeds), every: Number(asked.every), x: asked.x, big: asked.big };
  for (const [name, value] of Object.entries(flags)) told.set(name, value);
  return told.toString();
}

// Asking for panels: one question at a time, and only an answer to what is still asked is drawn.

const asking = { busy: false, again: false, timer: null, due: Infinity, soonest: 0, lists: 0 };

function askPanels(touched = false) {
  if (touched) parts.panels.setAttribute("aria-busy", "true");
  if (asking.busy) {
    asking.again = true;
    return;
  }
  const due = touched ? Date.now() + 40 : Math.max(asking.soonest, Date.now());
  if (due >= asking.due) return; // asked for already, and sooner
  clearTimeout(asking.timer);
  asking.due = due;
  asking.timer = setTimeout(answerPanels, due - Date.now());
}

async function answerPanels() {
  const asked = query(), begun = Date.now();
  Object.assign(asking, { busy: true, due: Infinity });
  try {
    const found = await get(`/api/watch/panels?${asked}`);
    if (asked === query()) {
      Object.assign(data, found);
      drawRuns();
      drawPanels();
    }
  } catch (error) {
    if (error.status) notice(error.message, "bad"); // that the server has gone is said by the stream
  }
  const other = asked !== query();
  asking.soonest = Date.now() + Math.max(PAUSE, 3 * (Date.now() - begun));
  asking.busy = false;
  if (!other) parts.panels.setAttribute("aria-busy", "false");
  if (other || asking.again) askPanels(other);
  asking.again = false;
}

async function askLists() {
  const mine = ++asking.lists;
  const told = new URLSearchParams(chosen().map((name) => ["run", name]));
  try {
    const [alarms, differing] = await Promise.all([get(`/api/watch/alarms?${told}`), get(`/api/watch/settings?${told}`)]);
    if (mine !== asking.lists) return;
    data.alarms = alarms.alarms;
    alarmList(parts.alarms, alarms);
    settings(parts.settings, differing);
    drawPanels();
  } catch (error) {
    if (error.status) notice(error.message, "bad");
  }
}

// Drawing

function painted(index) {
  return { colour: `c${index % COLOURS}`, dash: DASHES[Math.floor(index / COLOURS) % DASHES.length] };
}

function paint(panel, line, index) {
  if (line.source >= 0) return painted(data.colours[data.sources[line.source]?.[0]] ?? 0);
  return panel.key === "frontier" ? { colour: "best", dash: "4 3" } : painted(index);
}

function marks() {
  const on = new Set(chosen()), found = new Map();
  for (const { run, at, level } of data.alarms) {
    const where = JSON.stringify(at);
    if (on.has(run) && found.get(where)?.level !== "error") found.set(where, { at, level });
  }
  return [...found.values()];
}

const look = {
  paint, marks, say, enlarge: (key) => enlarge(view.big === key ? "" : key),
  file: (key) => `/api/watch/picture?${query()}&${new URLSearchParams({ panel: key })}`,
};

function enlarge(key) {
  const old = view.big;
  go({ big: key });
  charts.get(key || old)?.element.scrollIntoView({ block: "nearest" });
}

function drawPanels() {
  const wanted = view.find.toLowerCase();
  const fits = (panel) => [panel.title, panel.key, panel.metric, ...panel.lines.map((line) => line.label)].some((text) => text.toLowerCase().includes(wanted));
  const there = data.panels.filter(fits);
  for (const [key, { element, forget }] of charts) {
    if (there.some((panel) => panel.key === key)) continue;
    forget();
    element.remove();
    charts.delete(key);
  }
  there.forEach((panel, index) => {
    if (!charts.has(panel.key)) charts.set(panel.key, chart(panel.key, look));
    const { element, update } = charts.get(panel.key);
    if (parts.panels.children[index] !== element) parts.panels.insertBefore(element, parts.panels.children[index] ?? null);
    update(panel, view.big === panel.key);
  });
  const without = data.without.length ? `Not drawn, since they do not record their ${data.x}: ${data.without.join(", ")}.` : "";
  const why = !data.runs.length ? `No run yet in ${data.paths.join(", ")}. What appears there is shown.`
    : !drawn().length ? "No run is chosen." : !data.panels.length ? without || "Nothing is recorded yet." : there.length ? without : "No panel has that in its name.";
  replace(parts.none, why);
}

const drawList = runList(parts.runs, {
  on: (run) => isOn(view, data.runs, run),
  paint: (run) => painted(data.colours[run.name] ?? data.runs.indexOf(run)),
  toggle: (name) => go(switched(view, data.runs, data.runs.find((run) => run.name === name))),
  all: (on) => {
    const names = data.runs.map((run) => run.name);
    go({ off: new Set(on ? [] : names.slice(0, MANY)), on: new Set(on ? names.slice(MANY) : []) });
  },
});

function drawRuns() {
  drawList(data.runs);
}

function say(text) {
  replace(parts.said, text);
}

const control = {};

function controls() {
  if (control.find.value !== view.find) control.find.value = view.find;
  const percent = Math.round(view.smooth * 100);
  if (Number(control.smooth.value) !== percent) control.smooth.value = String(percent);
  control.smooth.setAttribute("aria-valuetext", percent ? `${percent} % of the curve` : "none");
  replace(control.told, percent ? `${percent} %` : "none");
  control.x.value = view.x;
  for (const name of ["seeds", "every"]) control[name].setAttribute("aria-checked", view[name] ? "true" : "false");
}

function layout() {
  const box = (name, label) => el("button", { id: name, role: "switch", class: "switch", onclick: () => go({ [name]: !view[name] }) }, label);
  Object.assign(control, {
    find: el("input", { id: "find", type: "search", placeholder: "/ filter", "aria-label": "Filter of panels", autocomplete: "off", spellcheck: "false",
      oninput: (event) => go({ find: event.target.value }, { quiet: true }),
      onkeydown: (event) => { if (event.key === "Escape" || event.key === "Enter") event.target.blur(); } }),
    smooth: el("input", { id: "smooth", type: "range", min: "0", max: "60", step: "1", title: "Share of the curve over which values are averaged",
      oninput: (event) => go({ smooth: Number(event.target.value) / 100 }, { quiet: true }) }),
    told: el("output", { for: "smooth" }),
    x: el("select", { id: "x", title: "hours: of training, without evaluation and pauses", onchange: (event) => go({ x: event.target.value }) },
      AXES.map((name) => el("option", { value: name }, name))),
    seeds: box("seeds", "Average over seeds"), every: box("every", "All metrics"),
  });
  parts.state = el("p", { id: "state", role: "status" });
  parts.said = el("p", { id: "said", class: "unseen", "aria-live": "polite" });
  parts.none = el("p", { id: "none", class: "faint" });
  replace(
    document.getElementById("app"),
    el("header", { class: "row spread" }, el("h1", {}, "gro watch"), parts.state),
    el("div", { class: "columns" },
      el("div", { class: "side" }, parts.runs, parts.alarms, help()),
      el("div", { class: "centre" },
        el("div", { class: "row controls" }, control.find, el("label", { class: "row", for: "smooth" }, "Smoothing", control.smooth, control.told),
          el("label", { class: "row", for: "x" }, "Over", control.x), control.seeds, control.every),
        parts.none, parts.panels, parts.samples, parts.settings)),
    parts.said,
  );
}

const KEYS = [
  ["/", "/", "filter panels", () => control.find.focus()],
  ["[", "[", "samples of the step before", () => samples.walk(-1)],
  ["]", "]", "samples of the next step", () => samples.walk(1)],
  ["Escape", "Esc", "all panels small", () => view.big && enlarge("")],
];

function help() {
  const told = [["1", "1 … 9", "run on or off"], ...KEYS, ["", "← →", "values of the panel in focus"], ["", "Enter", "enlarge the panel in focus"]];
  return el("details", { class: "help" }, el("summary", {}, "Keys"),
    el("dl", {}, told.map(([, key, meaning]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, meaning)])));
}

function listen() {
  const toggles = Array.from({ length: 9 }, (_, i) => [String(i + 1), () => data.runs[i] && go(switched(view, data.runs, data.runs[i]))]);
  keys(Object.fromEntries([...KEYS.map(([key, , , action]) => [key, action]), ...toggles]));
  for (const moved of ["hashchange", "popstate"]) {
    window.addEventListener(moved, () => {
      if (location.hash === address(view, data.smooth)) return;
      const before = view;
      view = fromAddress(data.smooth);
      show(before);
    });
  }
  live({
    runs: fresh,
    steps(changed) {
      const by = new Map(changed.map((run) => [run.name, run]));
      fresh(data.runs.map((run) => by.get(run.name) ?? run));
    },
    alarm({ run, step, level, message }) {
      say(`${level} in ${run}${step === null ? "" : ` at step ${step}`}: ${message}`);
    },
    state(kind, text) {
      parts.state.className = kind;
      replace(parts.state, text);
    },
  });
}

// What is known of the runs by now; where something of what the lists say may have changed, they are asked for again.
function fresh(runs) {
  const listed = () => JSON.stringify(data.runs.map(({ name, status, alarms }) => [name, status, alarms]));
  const before = listed();
  data.runs = runs;
  if (listed() !== before) askLists();
  drawRuns();
  askPanels();
  samples.update(data.runs);
}

async function start() {
  try {
    Object.assign(data, await get("/api/watch/runs"));
  } catch (error) {
    notice(error.message, "bad");
    return;
  }
  view = fromAddress(data.smooth);
  samples = sampler(parts.samples, { view: () => view, go: (changes) => go(changes, { quiet: true }) });
  layout();
  controls();
  drawRuns();
  askPanels(true);
  askLists();
  samples.update(data.runs);
  listen();
}

start();
