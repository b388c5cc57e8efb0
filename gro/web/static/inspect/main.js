// gro inspect: one address for every view, one state, and the parts of the page that are drawn from it.
//
// The view lives in the address.  Whatever changes the view changes the address; whatever changes the address (a link,
// the back button) changes the view.

import { el, get, keys, notice, replace } from "../base.js";
import { address, fromAddress } from "./address.js";
import { heatMap, legend, options, rangeOf, valueOf } from "./heat.js";
import { groupList, promptList, stepPicker } from "./picker.js";
import { statePanel } from "./walk.js";

const POLL = 5000;
const places = {};
const data = { run: null, step: null, rows: new Map() };
let view = {}; // what is on the page
let target = {}; // what was asked for last, which may still be loading
let drawing = 0;

// Changes the view; a step from token to token does not fill the history.
function go(changes, { quiet = false } = {}) {
  const next = { ...target, ...changes };
  const hash = address(next);
  if (hash !== location.hash) history[quiet ? "replaceState" : "pushState"](null, "", hash);
  return show(next);
}

async function show(wanted) {
  const mine = ++drawing;
  const app = document.getElementById("app");
  target = wanted;
  app.setAttribute("aria-busy", "true");
  try {
    const found = await settled(wanted, mine);
    if (!found) return;
    target = view = found;
    const exact = address(view);
    if (exact !== location.hash) history.replaceState(null, "", exact);
    draw();
    app.setAttribute("aria-busy", "false");
  } catch (error) {
    if (mine !== drawing) return;
    notice(error.message, "bad");
    app.setAttribute("aria-busy", "false");
    target = view;
  }
}

// The view with everything loaded that it needs, and with something where it says nothing or what is not there; null
// where another one was asked for meanwhile.
async function settled(wanted, mine) {
  const next = { ...wanted };
  const absent = []; // what was asked for and is not there
  const steps = data.run.steps;
  if (!steps.includes(next.step)) {
    if (next.step !== null) absent.push(`no completions were recorded at step ${next.step}`);
    next.step = steps[steps.length - 1];
  }
  const other = data.step?.step !== next.step;
  const step = other ? await get(`/api/inspect/steps/${next.step}`) : data.step;
  const all = step.groups.flatMap((group) => group.rows.map((row) => ({ ...row, group })));
  const found = all.find((row) => row.row === next.row);
  if (!found && next.row !== null) absent.push(`step ${next.step} has no recorded completion ${next.row}`);
  const chosen = found ?? all[0];
  next.row = chosen.row;
  const others = chosen.group.rows.filter((row) => row.row !== next.row);
  if (!others.some((row) => row.row === next.beside)) {
    if (next.beside !== null) absent.push(`completion ${next.beside} cannot stand beside ${next.row}`);
    next.beside = null;
  }
  if (next.beside === null) next.side = "a";
  const rows = other ? new Map() : data.rows;
  await Promise.all([next.row, next.beside].filter((row) => row !== null && !rows.has(row)).map(async (row) => {
    rows.set(row, await get(`/api/inspect/steps/${next.step}/rows/${row}`));
  }));
  if (mine !== drawing) return null;
  Object.assign(data, { step, rows });
  const length = rows.get(next.side === "b" ? next.beside : next.row).tokens.length;
  if (next.at !== null) next.at = length ? Math.min(next.at, length - 1) : null;
  const names = data.run.quantities.map((one) => one.name);
  if (next.q !== null && !names.includes(next.q)) absent.push(`this run has no quantity “${next.q.slice(0, 40)}”`);
  if (!names.includes(next.q)) next.q = names[0];
  next.act &&= data.run.actions;
  notice(absent.join("; "));
  return next;
}

function group() {
  return data.step.groups.find((one) => one.rows.some((row) => row.row === view.row));
}

function shown() {
  const rows = [data.rows.get(view.row)];
  if (view.beside !== null) rows.push(data.rows.get(view.beside));
  return rows;
}

function focused() {
  return data.rows.get(view.side === "b" ? view.beside : view.row);
}

// Redraws, and puts the focus back on what had it.
function draw() {
  const active = document.activeElement?.id;
  drawHead();
  stepPicker(places.steps, data.run, view.step, (step) => go({ step, row: null, beside: null, at: null, side: "a" }));
  promptList(places.prompts, data.step.groups, group(), (one) => go({ row: one.rows[0].row, beside: null, at: null, side: "a" }));
  groupList(places.group, group(), view, {
    open: (row) => go({ row, at: null, side: "a", beside: view.beside === row ? view.row : view.beside }),
    beside: (row) => go({ beside: view.beside === row ? null : row, side: "a" }),
  });
  drawHeat();
  drawState();
  if (active && document.getElementById(active) !== document.activeElement) document.getElementById(active)?.focus({ preventScroll: true });
}

function drawHead() {
  const { name, algorithm, status, last_step, updates } = data.run;
  const words = { running: "being trained", finished: "finished", interrupted: "interrupted" };
  const which = updates > 1 ? ` · recorded is the first of a step's ${updates} updates` : "";
  replace(
    places.head,
    el("h1", {}, name),
    el("p", { class: "faint" }, `${algorithm ?? "?"} · ${words[status] ?? status} · ${last_step ?? 0} steps${which}`),
  );
}

function chooser(choices, chosen) {
  const groups = Map.groupBy(choices, (one) => (one.term === null ? "of the token" : `term ${one.term}: ${one.term_label}`));
  return el(
    "select", { id: "quantity", "aria-describedby": "meaning", onchange: (event) => go({ q: event.target.value }) },
    [...groups].map(([label, mine]) => {
      const optgroup = el("optgroup", { "aria-label": label });
      optgroup.label = label;
      optgroup.append(...mine.map((one) => el("option", { value: one.name, selected: one === chosen, disabled: one.missing }, one.label)));
      return optgroup;
    }),
  );
}

function drawHeat() {
  const choices = options(data.run.quantities, data.rows.get(view.row));
  const chosen = choices.find((one) => one.name === view.q) ?? choices[0];
  const rows = shown();
  const range = rangeOf(rows, chosen);
  const maps = rows.map((row, index) => {
    const side = index ? "b" : "a";
    const focus = view.side === side ? view.at : null;
    return heatMap(row, chosen, range, { side, focus, pick: (at) => go({ at, side }, { quiet: true }) });
  });
  const whose = chosen.term === null ? "" : ` (term ${chosen.term}: ${chosen.term_label})`;
  replace(
    places.heat,
    el("div", { class: "row" }, el("label", { for: "quantity" }, "Colour shows"), chooser(choices, chosen)),
    el("p", { id: "meaning", class: "faint" }, chosen.meaning + whose),
    range ? legend(chosen, range) : el("p", { role: "status" }, "This was not recorded of these completions."),
    el("details", { class: "prompt", open: places.promptOpen, ontoggle: (e) => { places.promptOpen = e.target.open; } },
      el("summary", {}, "Prompt"), el("pre", { class: "text" }, group().prompt)),
    el("div", { class: rows.length > 1 ? "two" : "one" }, maps),
  );
}

function drawState() {
  const row = focused();
  const known = view.at === null ? [] : options(data.run.quantities, row).map((one) => ({ ...one, value: valueOf(row, one, view.at) }));
  statePanel(places.state, {
    step: view.step, row, at: view.at, act: view.act, actions: data.run.actions, prompt: group().tokens,
    known: known.filter((one) => one.value !== null),
    walk, toggle: () => go({ act: !view.act }, { quiet: true }),
  });
}

function walk(by) {
  const length = focused().tokens.length;
  if (!length) return;
  const at = target.at === null ? (by > 0 ? 0 : length - 1) : Math.max(0, Math.min(length - 1, target.at + by));
  go({ at }, { quiet: true });
}

function neighbour(by) {
  const rows = group().rows.map((row) => row.row);
  const index = rows.indexOf(view.row) + by;
  if (index >= 0 && index < rows.length) go({ row: rows[index], beside: view.beside === rows[index] ? view.row : view.beside, at: null, side: "a" });
}

function otherPrompt(by) {
  const groups = data.step.groups;
  const one = groups[groups.indexOf(group()) + by];
  if (one) go({ row: one.rows[0].row, beside: null, at: null, side: "a" });
}

function otherStep(by) {
  const steps = data.run.steps;
  const step = steps[steps.indexOf(target.step) + by];
  if (step !== undefined) go({ step, row: null, beside: null, at: null, side: "a" });
}

function otherQuantity() {
  const choices = options(data.run.quantities, data.rows.get(view.row)).filter((one) => !one.missing);
  const index = choices.findIndex((one) => one.name === view.q);
  go({ q: choices[(index + 1) % choices.length].name });
}

function nextBeside() {
  const rows = group().rows.map((row) => row.row).filter((row) => row !== view.row);
  const index = rows.indexOf(view.beside);
  go({ beside: rows[index + 1] ?? null, side: "a" });
}

const KEYS = [
  ["ArrowLeft", "←", "previous token", () => walk(-1)],
  ["ArrowRight", "→", "next token", () => walk(1)],
  ["Home", "Home", "first token", () => go({ at: 0 }, { quiet: true })],
  ["End", "End", "last token", () => go({ at: Number.MAX_SAFE_INTEGER }, { quiet: true })],
  ["a", "a", "actions of the state", () => go({ act: !view.act, at: view.at ?? 0 }, { quiet: true })],
  ["q", "q", "next quantity", otherQuantity],
  ["j", "j", "next completion", () => neighbour(1)],
  ["k", "k", "previous completion", () => neighbour(-1)],
  ["b", "b", "another completion beside", nextBeside],
  ["s", "s", "to the other side", () => view.beside !== null && go({ side: view.side === "a" ? "b" : "a", at: view.at ?? 0 }, { quiet: true })],
  ["n", "n", "next prompt", () => otherPrompt(1)],
  ["p", "p", "previous prompt", () => otherPrompt(-1)],
  ["]", "]", "next step", () => otherStep(1)],
  ["[", "[", "previous step", () => otherStep(-1)],
];

function layout() {
  for (const name of ["head", "steps", "prompts", "group", "heat", "state"]) places[name] = el("section", { id: `part-${name}` });
  places.steps.setAttribute("aria-label", "Step");
  places.prompts.setAttribute("aria-label", "Prompts of the step");
  places.group.setAttribute("aria-label", "Completions of the prompt");
  places.heat.setAttribute("aria-label", "Tokens");
  places.state.setAttribute("aria-label", "State");
  const help = el("details", { class: "help" }, el("summary", {}, "Keys"),
    el("dl", {}, KEYS.map(([, key, meaning]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, meaning)])));
  replace(
    document.getElementById("app"),
    places.head, places.steps,
    el("div", { class: "columns" },
      el("div", { class: "side" }, places.prompts, places.group, help),
      el("div", { class: "centre" }, places.heat, places.state)),
  );
}

async function refresh() {
  if (!document.hidden) await look();
  if (data.run.status === "running") setTimeout(refresh, POLL);
}

async function look() {
  try {
    const newer = await get("/api/inspect/run");
    const grown = newer.steps.length !== data.run.steps.length || newer.status !== data.run.status;
    data.run = newer;
    if (grown && view.step !== undefined) draw();
  } catch (error) {
    notice(error.message, "bad");
  }
}

async function start() {
  try {
    data.run = await get("/api/inspect/run");
  } catch (error) {
    notice(error.message, "bad");
    return;
  }
  layout();
  if (!data.run.steps.length) {
    drawHead();
    replace(places.steps, el("p", {}, data.run.status === "running"
      ? "No step has been recorded yet. Load the page again in a moment."
      : data.run.last_step ? "This run recorded no completions; its recipe may say training.record_groups: 0."
        : "This run ended before its first step."));
    return;
  }
  keys(Object.fromEntries(KEYS.map(([key, , , action]) => [key, action])));
  for (const moved of ["hashchange", "popstate"]) { // of one move both may come
    window.addEventListener(moved, () => { if (location.hash !== address(target)) show(fromAddress()); });
  }
  await show(fromAddress());
  if (data.run.status === "running") setTimeout(refresh, POLL);
}

start();
