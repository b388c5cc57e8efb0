// A completion as a heat map: which quantities there are, what they are worth at a token, and their colours.

import { el } from "../base.js";

const STATES = { "-1": "below", 0: "inside", 1: "above", 2: "past dual" };

// All that can be shown of a row.  Only some terms clip: of the others there is no clip state to miss.
export function options(quantities, row) {
  const known = quantities.map((one) => ({ ...one, missing: !(one.name in row.quantities) }));
  return known.filter((one) => !(one.missing && one.name.endsWith(".clip")));
}

export function valueOf(row, option, at) {
  return row.quantities[option.name]?.[at] ?? null;
}

// {low, high} of all rows that are shown, so that equal colours are equal numbers; null where there is nothing.
export function rangeOf(rows, option) {
  const all = rows.flatMap((row) => row.tokens.map((_, at) => valueOf(row, option, at))).filter((v) => v !== null);
  if (!all.length) return null;
  return { low: all.reduce((a, b) => Math.min(a, b)), high: all.reduce((a, b) => Math.max(a, b)) };
}

export function text(value, scale = "signed") {
  if (value === null || value === undefined) return "–";
  if (scale === "flag") return value ? "yes" : "no";
  if (scale === "state") return `${value} (${STATES[value] ?? "?"})`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

// How strongly a token is coloured, from −1 to 1: 0 is no colour.
function heat(value, scale, range) {
  if (value === null) return 0;
  if (scale === "flag") return value ? 0.5 : 0;
  if (scale === "state") return Math.max(-1, Math.min(1, value));
  const level = scale === "ratio" ? Math.log(Math.max(value, 1e-9)) : value;
  const ends = [range.low, range.high].map((v) => Math.abs(scale === "ratio" ? Math.log(Math.max(v, 1e-9)) : v));
  const most = Math.max(...ends);
  return most > 0 ? level / most : 0;
}

// Background of an element: its strength in per cent and its side.
function paint(element, level) {
  element.style.setProperty("--heat", `${Math.round(Math.abs(level) * 100)}%`);
  element.classList.add(level < 0 ? "below" : "above");
}

export function legend(option, range) {
  const { scale } = option;
  let stops;
  if (scale === "flag") stops = [0, 1];
  else if (scale === "state") stops = [-1, 0, 1, 2].filter((v) => v === 0 || (v >= range.low && v <= range.high));
  else if (scale === "ratio") {
    const most = Math.max(Math.abs(Math.log(Math.max(range.low, 1e-9))), Math.abs(Math.log(Math.max(range.high, 1e-9))));
    stops = [-1, -0.5, 0, 0.5, 1].map((part) => Math.exp(part * most));
  } else {
    const most = Math.max(Math.abs(range.low), Math.abs(range.high));
    const sides = [...(range.low < 0 ? [-1, -0.5] : []), 0, ...(range.high > 0 ? [0.5, 1] : [])];
    stops = sides.map((part) => part * most);
  }
  const full = scale === "ratio" ? { low: stops[0], high: stops[stops.length - 1] } : range;
  const boxes = [...new Set(stops)].map((value) => {
    const box = el("li", { class: "heat" }, text(scale === "flag" || scale === "state" ? value : Number(value.toPrecision(3)), scale));
    paint(box, heat(value, scale, full));
    return box;
  });
  const said = scale === "flag" || scale === "state" ? null
    : el("span", { class: "faint" }, `lowest ${text(range.low)}, highest ${text(range.high)}`);
  return el("div", { class: "row legend" }, el("ul", { "aria-label": "Legend" }, boxes), said);
}

// What cannot be seen is shown: line ends, control characters, marks that turn the direction of text.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e0fff}]/gu;

export function visible(token) {
  return token.replace(UNSEEN, (c) => {
    if (c === "\n") return "⏎";
    if (c === "\t") return "⇥";
    return `⟨${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

export function heatMap(row, option, range, { side, focus, pick }) {
  const tokens = row.tokens.map((token, at) => {
    const value = valueOf(row, option, at);
    const shown = visible(token) || "∅";
    const box = el("span", {
      class: "token heat", id: `${side}-${at}`, role: "option", "aria-selected": focus === at ? "true" : "false",
      "aria-label": `${at + 1}: ${shown.trim() || "space"}, ${option.label} ${text(value, option.scale)}`,
      title: `${option.label}: ${text(value, option.scale)}`, onclick: () => pick(at),
    }, shown);
    if (value === null) box.classList.add("none");
    else paint(box, heat(value, option.scale, range));
    return token.includes("\n") ? [box, el("br")] : box;
  });
  const list = el("div", {
    id: `tokens-${side}`, class: "tokens", role: "listbox", tabindex: "0", "aria-orientation": "horizontal",
    "aria-label": `Tokens of completion ${row.row}`, "aria-activedescendant": focus === null ? null : `${side}-${focus}`,
    onfocus: () => { if (focus === null && row.tokens.length) pick(0); },
  }, tokens.length ? tokens : "(no tokens)");
  return el("article", { class: "card", "aria-label": `Completion ${row.row}` }, el("h2", {}, `Completion ${row.row}`), facts(row), list);
}

function facts(row) {
  const rewards = Object.entries(row.rewards).map(([name, value]) => `${name} ${text(value)}`);
  const words = [
    row.role === "target" ? "demonstration" : `reward ${text(row.reward)}`, ...(rewards.length > 1 ? rewards : []),
    `${row.length} tokens`, { stop: "ended by itself", length: "cut off", given: "from a file" }[row.finish] ?? row.finish,
  ];
  return el("p", { class: "faint" }, words.join(" · "));
}
