// The page of `gro label`: shows one item, takes one answer, and says what became of it.

import { api, el, get, keys, notice, replace } from "./base.js";
import { KINDS } from "./label-kinds.js";
import { markdown, plain } from "./text.js";

const app = document.getElementById("app");
const EVERY = 1000; // ms between two looks for what a run asks next
const RETRIES = 6; // times that an answer is sent again on its own, at most 8 s apart

const state = {
  setting: null, // what the server asks for
  who: "",
  offered: null, // {item, lease, prompt, completions}
  draft: null, // the answer so far, by kind
  pending: null, // an answer on its way or not saved yet; it keeps its key
  busy: false,
  said: new Map(), // item → the answer that was saved of it, and why: an undo gives them back
  focused: "", // the id of what had the focus before
  last: null,
  timer: 0,
  run: null, // of a run that waits for labels: running, interrupted or finished
  progress: null,
  rich: localStorage.getItem("gro-plain") !== "yes",
  seconds: 0,
  since: 0,
};

// --- time: only while the page is looked at ---

function watch(running) {
  if (state.since) state.seconds += (performance.now() - state.since) / 1000;
  state.since = running ? performance.now() : 0;
}
document.addEventListener("visibilitychange", () => watch(!document.hidden));

// --- talking with the server ---

// What has the focus loses it when it cannot be pressed, or is drawn anew: its successor gets it.
function working(busy) {
  if (busy && !state.busy) state.focused = document.activeElement?.id;
  state.busy = busy;
  app.setAttribute("aria-busy", String(busy));
  refresh();
  if (!busy && document.activeElement === document.body) focusOn(state.focused);
}

const focusOn = (id) => id && document.getElementById(id)?.focus({ preventScroll: true });

async function load(from = "/api/label/next", body = {}) {
  if (!state.busy) await follow(from, body);
}

// Shows what comes next; nothing can be pressed until it is there.
async function follow(from = "/api/label/next", body = {}) {
  working(true);
  try {
    show(await api(from, { annotator: state.who, ...body }));
  } catch (error) {
    notice(error.message, "bad");
  } finally {
    working(false);
  }
}

function show(found) {
  state.offered = found.item;
  state.last = found.last;
  state.progress = found.progress;
  state.run = found.run;
  const said = state.said.get(found.item?.item);
  state.draft = found.item && ((said && kind().again?.(said.answer)) ?? kind().start(found.item.completions.length));
  state.pending = null;
  state.seconds = 0;
  state.since = document.hidden ? 0 : performance.now();
  draw(said?.rationale ?? "");
  scrollTo(0, 0);
  document.title = found.run && found.item ? "● gro label" : "gro label"; // for who is in another tab meanwhile
  if (!found.item && found.run && found.run !== "finished") later();
}

function later(times = 1) {
  clearTimeout(state.timer);
  state.timer = setTimeout(lookAgain, times * EVERY);
}

// Asks by itself until the run has new answers to rate or is finished.  Draws only when something has changed, so that
// the focus stays where it is.
async function lookAgain() {
  const over = () => state.offered || document.getElementById("name");
  if (over()) return;
  if (state.busy) return later();
  let found;
  try {
    found = await api("/api/label/next", { annotator: state.who });
  } catch (error) {
    notice(error.message, "bad");
    return later(5);
  }
  if (over()) return;
  const changed = found.item || found.run !== state.run || found.last !== state.last || found.progress.done !== state.progress.done;
  if (state.busy || !changed) return later();
  show(found);
  notice(found.item ? "New answers have come." : "");
}

async function send(answer) {
  if (state.busy || !state.offered) return;
  watch(true);
  const rationale = document.getElementById("rationale")?.value ?? "";
  const same = state.pending && JSON.stringify(state.pending.answer) === JSON.stringify(answer);
  state.pending = {
    annotator: state.who, item: state.offered.item, lease: state.offered.lease,
    key: same ? state.pending.key : crypto.randomUUID(), answer, rationale,
    seconds: Math.round(state.seconds * 10) / 10,
  };
  working(true);
  let saved = false;
  try {
    await persistently(state.pending);
    saved = true;
    state.said.set(state.pending.item, { answer, rationale });
    notice("");
  } catch (error) {
    notice(error.message.startsWith("not saved") ? error.message : `not saved: ${error.message}`, "bad");
    saved = error.status === 409; // somebody else's: nothing to save any more
  }
  if (saved) await follow();
  else working(false);
}

// A request without an answer may or may not have arrived: it is sent again as it was, and counts once.
async function persistently(body) {
  for (let i = 0; ; i++) {
    try {
      return await api("/api/label/save", body);
    } catch (error) {
      if (error.status !== 0 || i === RETRIES) throw error;
      notice("not saved yet: the server does not answer; trying again", "bad");
      await new Promise((go) => setTimeout(go, Math.min(8000, 250 * 2 ** i)));
    }
  }
}

const skip = () => send({ skip: true });
const nothing = () => `there is nothing to undo${state.run ? ": what the run has learnt from stays" : ""}`;
const undo = () => (state.last === null ? notice(nothing()) : load("/api/label/undo", { label: state.last }));

// --- the page ---

const kind = () => KINDS[state.setting.kind];
const context = () => ({ draft: state.draft, top: state.setting.top, changed: refresh, send, shown: state.offered.completions.length });

function draw(rationale = document.getElementById("rationale")?.value) {
  document.body.classList.toggle("labelling", Boolean(state.offered));
  const parts = [header()];
  if (!state.offered) parts.push(finished());
  else {
    parts.push(
      el("section", { class: "card prompt", "aria-label": "Prompt", tabindex: "0" }, spoken(state.offered.prompt)),
      el("section", { class: "completions", "aria-label": "Completions" }, state.offered.completions.map(completion)),
      bar(rationale),
    );
  }
  replace(app, parts);
  refresh();
}

function header() {
  const p = state.progress;
  return el("header", {},
    el("h1", {}, "gro label"),
    el("div", { class: "progress" },
      el("progress", { value: p.done, max: Math.max(p.wanted, 1), "aria-label": "Progress" }),
      el("span", { id: "count" }, `${p.done} / ${p.wanted}`),
      el("span", { class: "faint" }, `${p.mine} by you`)),
    el("div", { class: "row" },
      el("button", { id: "plain", onclick: turn, "aria-pressed": String(!state.rich) }, "Plain text ", el("kbd", {}, "p")),
      el("button", { id: "agreement", onclick: agreement }, "Agreement ", el("kbd", {}, "a")),
      el("button", { id: "help", onclick: help }, "Keys ", el("kbd", {}, "?")),
      el("button", { id: "who", onclick: askName, title: "Label under another name" }, state.who)));
}

function finished() {
  const [title, text] = state.run ? ofRun() : state.progress.done < state.progress.wanted
    ? ["Nothing is left for you just now", "Others are looking at what remains, or you have skipped it."]
    : ["Everything is labelled", "gro label-export writes the labels as a data set."];
  return el("section", { class: "card", id: "finished", role: "status", dataset: { run: state.run ?? "" } },
    el("h2", {}, title), el("p", {}, text),
    el("div", { class: "row" },
      el("button", { onclick: () => load() }, "Look again"),
      el("button", { onclick: undo, disabled: state.last === null }, "Undo my last ", el("kbd", {}, "u"))));
}

// What is said while there is nothing to rate for a run.
function ofRun() {
  const run = state.setting.run;
  const exports = `gro label-export ${run} writes what was said as a data set.`;
  if (state.run === "running" && state.progress.done < state.progress.wanted) {
    return ["Others have the rest", `What ${run} still waits for is theirs to rate. What somebody leaves for ten minutes comes to you by itself.`];
  }
  return {
    running: ["Waiting for the run", `${run} is at work. Its next answers appear here by themselves.`],
    interrupted: ["The run is interrupted", `${run} goes on by the command that began it. What you have said is kept, and its next answers appear here by themselves.`],
    finished: ["The run has finished", `${run} has asked for everything that it wanted. Thank you. ${exports}`],
  }[state.run];
}

function spoken(said) {
  const show = (text) => el("div", { class: "text", dir: "auto" }, !text ? el("em", { class: "faint" }, "(empty)") : state.rich ? markdown(text) : el("div", { class: "plain" }, plain(text)));
  if (typeof said === "string") return show(said);
  if (said.length === 1 && said[0].role === "assistant") return show(said[0].content);
  return said.map((turn) => el("div", { class: "turn" }, el("div", { class: "role" }, turn.role), show(turn.content)));
}

function completion(said, place) {
  const card = el("article", { class: "card completion", dataset: { place }, "aria-label": `Completion ${place + 1}` });
  replace(card, kind().head(place, context), spoken(said), kind().foot?.(place, context));
  kind().prepare?.(card, place, context);
  return card;
}

function bar(rationale = "") {
  return el("footer", { class: "bar" },
    el("div", { class: "row", id: "choices" }, kind().buttons(context)),
    el("div", { class: "row spread" },
      el("button", { id: "undo", onclick: undo }, "Undo ", el("kbd", {}, "u")),
      el("textarea", {
        id: "rationale", placeholder: "Why?", title: "r; Esc goes back", "aria-label": "Rationale", maxlength: "20000", rows: "1",
        onkeydown: (event) => event.key === "Escape" && event.target.blur(),
      }, rationale),
      el("button", { id: "skip", onclick: skip }, "Skip ", el("kbd", {}, "s"))));
}

// What changes without drawing everything again.
function refresh() {
  if (!state.offered) return;
  for (const button of document.querySelectorAll(".bar button, .completion button")) button.disabled = state.busy;
  const undoing = document.getElementById("undo");
  if (undoing) undoing.disabled = state.busy || state.last === null;
  for (const card of document.querySelectorAll(".completion")) kind().update?.(card, Number(card.dataset.place), context());
  const sending = document.getElementById("send");
  if (sending) sending.disabled = state.busy || !kind().answer(state.draft);
}

function turn() {
  const focused = document.activeElement?.id;
  state.rich = !state.rich;
  localStorage.setItem("gro-plain", state.rich ? "no" : "yes");
  draw();
  focusOn(focused);
}

// --- what opens over the page ---

function dialog(id, title, ...children) {
  if (document.querySelector("dialog")) return;
  const box = el("dialog", { id, "aria-label": title, onclose: () => box.remove() }, el("h2", {}, title), children,
    el("form", { class: "row", onsubmit: (event) => { event.preventDefault(); box.close(); } }, el("button", { class: "main" }, "Close")));
  document.body.append(box);
  box.showModal();
}

function help() {
  const all = [...(state.offered ? kind().help(context()) : []), ["s", "skip"], ["u", "undo your last label"],
    ["r", "write why; Esc goes back"], ["p", "Markdown or plain text"], ["a", "agreement and progress"], ["?", "this"]];
  dialog("keys", "Keys", el("table", {}, all.map(([key, does]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, does)))));
}

async function agreement() {
  let found;
  try {
    found = await get("/api/label/agreement");
  } catch (error) {
    return notice(error.message, "bad");
  }
  const number = (x) => (x === null ? "–" : x.toFixed(2));
  const table = (head, rows) => el("table", {}, el("tr", {}, head.map((h) => el("th", { scope: "col" }, h))), rows.map((r) => el("tr", {}, r.map((c) => el("td", {}, c)))));
  dialog("agreed", "Agreement",
    found.shared
      ? el("p", {}, `${found.shared} question${found.shared === 1 ? " has" : "s have"} answers of two or more people: ${Math.round(found.same * 100)} % of their pairs are equal, Fleiss's κ is ${number(found.fleiss)}.`)
      : el("p", {}, "Nothing has been labelled by two people yet; --per-item 2 asks two."),
    found.pairs.length ? table(["name", "name", "questions", "Cohen's κ"], found.pairs.map(([a, b, n, k]) => [a, b, n, number(k)])) : null,
    el("h2", {}, "People"),
    table(["name", "labels", "skipped", "median seconds"], found.people.map((p) => [p.name, p.labels, p.skipped, p.seconds === null ? "–" : p.seconds.toFixed(1)])));
}

function askName() {
  const { offered, draft } = state;
  const rationale = document.getElementById("rationale")?.value;
  document.body.classList.remove("labelling");
  const box = el("input", { id: "name", maxlength: "60", autocomplete: "off", value: state.who, "aria-label": "Your name",
    onkeydown: (event) => event.key === "Escape" && state.who && back() });
  replace(app, el("form", { class: "card name", onsubmit: named }, el("h1", {}, "Who is labelling?"),
    el("p", { class: "faint" }, "The name stands beside each label, and tells people apart."),
    el("div", { class: "row" }, box, el("button", { class: "main" }, "Begin"))));
  state.offered = null;
  box.focus();

  function named(event) {
    event.preventDefault();
    if (!box.value.trim()) return;
    if (box.value.trim() === state.who) return back();
    state.who = box.value.trim();
    state.said.clear();
    localStorage.setItem("gro-name", state.who);
    load();
  }

  // To what was there: who has not changed has lost nothing.
  function back() {
    if (!offered) return load();
    Object.assign(state, { offered, draft });
    draw(rationale);
    focusOn("who");
  }
}

// --- keys ---

// The second click of a double click, and what a held key repeats, would answer what has come up meanwhile.
document.addEventListener("click", (event) => event.detail > 1 && event.target.closest("button") && event.stopPropagation(), true);
document.addEventListener("keydown", (event) => event.repeat && !event.target.closest("textarea, input") && event.stopPropagation(), true);

keys({
  s: () => act(skip), u: () => !state.busy && state.progress && undo(), p: () => state.offered && turn(),
  a: () => state.progress && agreement(), "?": () => state.setting && help(),
  r: () => document.getElementById("rationale")?.focus(),
  ...Object.fromEntries(["ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp", "t", "Enter", "Backspace", ..."0123456789"].map((key) => [key, () => act(() => kind().key(key, context()))])),
});

function act(action) {
  if (state.offered && !state.busy && !document.querySelector("dialog")) action();
}

state.setting = await get("/api/label/setting");
state.who = state.setting.name || localStorage.getItem("gro-name") || "";
if (state.who) load();
else askName();
