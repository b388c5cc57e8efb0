// The list of runs, the alarms, and in what the runs differ.

import { el, replace } from "../base.js";
import { swatch } from "./picture.js";
import { number } from "./scale.js";

const WORDS = { unread: "being read", running: "running", interrupted: "interrupted", finished: "finished", gone: "gone", unreadable: "cannot be read" };

// Rows stay while what they say changes, so that no click is lost.  draw: {on(run), paint(run), toggle(name), all(on)}
export function runList(place, draw) {
  const rows = new Map(), heading = el("h2", {}), list = el("ul", { class: "runs" });
  const both = el("div", { class: "row" }, el("button", { id: "all-runs", onclick: () => draw.all(true) }, "all"), el("button", { id: "no-runs", onclick: () => draw.all(false) }, "none"));
  replace(place, el("div", { class: "row spread" }, heading, both), list);

  function row(name, index) {
    const made = { tick: el("span", { class: "tick", "aria-hidden": "true" }), swatch: el("span", { class: "holder" }), facts: el("small", { class: "facts" }) };
    made.button = el("button", { id: `run-${index}`, role: "checkbox", onclick: () => draw.toggle(name) },
      made.tick, made.swatch, el("span", { class: "name" }, name), index < 9 ? el("kbd", { "aria-hidden": "true" }, index + 1) : null);
    made.item = el("li", {}, made.button, made.facts);
    list.append(made.item);
    return made;
  }

  return (runs) => {
    replace(heading, `Runs (${runs.length})`);
    both.hidden = runs.length < 2;
    runs.forEach((run, index) => {
      if (!rows.has(run.name)) rows.set(run.name, row(run.name, index));
      const made = rows.get(run.name), on = draw.on(run), { colour, dash } = draw.paint(run);
      made.button.setAttribute("aria-checked", on ? "true" : "false");
      replace(made.tick, on ? "✓" : "");
      replace(made.swatch, swatch(on ? colour : "none", dash));
      replace(made.facts, facts(run));
    });
  };
}

function facts(run) {
  const step = run.step === null ? "no step yet" : `step ${run.step}${run.of ? ` of ${run.of}` : ""}`;
  const speed = run.status !== "running" || run.seconds === null ? null
    : `${number(run.seconds)} s a step${run.tokens === null ? "" : `, ${Math.round(run.tokens)} tokens/s`}`;
  const value = run.value === null ? null : `${run.measure} ${number(run.value)}`;
  const alarms = run.alarms ? `${run.alarms} alarm${run.alarms === 1 ? "" : "s"}` : null;
  const status = el("span", { class: `status ${run.status}` }, WORDS[run.status] ?? run.status);
  const told = [run.algorithm, status, run.status === "unread" || run.status === "unreadable" ? null : step, speed, value,
    alarms && el("span", { class: "bad" }, alarms), run.problem && el("span", { class: "bad" }, run.problem)].filter(Boolean);
  return told.flatMap((part, index) => (index ? [" · ", part] : [part]));
}

export function alarmList(place, { alarms, more }) {
  const list = alarms.map((alarm) => el("li", { class: alarm.level },
    el("span", { class: "level" }, alarm.level), el("small", {}, [alarm.run, alarm.step === null ? null : `step ${alarm.step}`].filter((part) => part !== null).join(" · ")),
    el("p", {}, alarm.message)));
  replace(place, el("h2", {}, `Alarms (${alarms.length + more})`),
    alarms.length ? el("ol", { class: "alarms", tabindex: "0", "aria-label": "Alarms, newest first" }, list)
      : el("p", { class: "faint" }, "none"),
    more ? el("p", { class: "faint" }, `and ${more} older ones`) : null);
}

export function settings(place, found) {
  if (found.config !== undefined) {
    const open = place.querySelector("details")?.open ?? false;
    replace(place, el("h2", {}, "Settings"), el("details", { open }, el("summary", {}, "The whole configuration"), el("pre", {}, found.config)));
    return;
  }
  replace(place, el("h2", {}, "In what the runs differ"), found.rows.length
    ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "In what the runs differ" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "setting"), found.runs.map((run) => el("th", { scope: "col" }, run)))),
      el("tbody", {}, found.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.key), row.values.map((value) => el("td", {}, value)))))))
    : el("p", { class: "faint" }, found.runs.length ? "in nothing that is recorded" : "no run is chosen"));
}
