// One state of the token-level decision process: the prefix, what was done in it, and what else could have been done.

import { el, get, replace } from "../base.js";
import { text, visible } from "./heat.js";

const WAIT = 120; // ms: who walks quickly asks for the last state only
const answers = new Map();
let asked = 0;

export function statePanel(place, { step, row, at, act, actions: any, prompt, known, walk, toggle }) {
  asked += 1;
  if (at === null) {
    replace(place, el("p", { class: "faint" }, "Choose a token, or walk with ← and →, to see its state."));
    return;
  }
  const before = row.tokens.slice(0, at);
  const actions = el("div", { id: "actions", "aria-live": "polite", "aria-busy": "false" });
  replace(
    place,
    el("div", { class: "card" },
      el("div", { class: "row spread" },
        el("h2", { id: "state-title" }, `State ${at + 1} of ${row.tokens.length}, completion ${row.row}`),
        el("span", { class: "row" },
          el("button", { id: "walk-back", "aria-label": "Previous token", disabled: at === 0, onclick: () => walk(-1) }, "←"),
          el("button", { id: "walk-on", "aria-label": "Next token", disabled: at === row.tokens.length - 1, onclick: () => walk(1) }, "→"))),
      el("p", { class: "prefix", "aria-label": "Prefix" },
        el("span", { class: "faint" }, prompt.map(visible).join("")), el("span", {}, before.map(visible).join("")),
        el("mark", {}, visible(row.tokens[at]) || "∅")),
      el("div", { class: "known" },
        el("dl", { "aria-label": "Quantities of the token" },
          el("div", {}, el("dt", {}, "token"), el("dd", {}, el("code", {}, visible(row.tokens[at])), ` id ${row.ids[at]}`)),
          known.filter((one) => one.term === null).map((one) =>
            el("div", {}, el("dt", { title: one.meaning }, one.label), el("dd", {}, text(one.value, one.scale)))))),
      partsTable(known.filter((one) => one.term !== null)),
      any
        ? el("button", { id: "act", "aria-expanded": act ? "true" : "false", "aria-controls": "actions", onclick: toggle },
          act ? "Hide the actions" : "Show the top 50 actions")
        : el("p", { class: "faint", id: "no-actions" }, "A reward model gives a score to a whole answer: it has no actions."),
      actions),
  );
  const list = place.querySelector(".prefix");
  list.scrollTop = list.scrollHeight;
  if (act) load(actions, `/api/inspect/steps/${step}/rows/${row.row}/actions/${at}`);
}

// The terms of c, one a line, each with its factors.
function partsTable(parts) {
  if (!parts.length) return el("p", { class: "faint" }, "The parts of its coefficient were not recorded.");
  const factor = (one) => one.name.split(".")[1];
  const head = new Map(parts.map((one) => [factor(one), factor(one) === "c" ? "product" : one.label]));
  const cell = (one) => el("td", {}, one ? text(one.value, one.scale) : "–");
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parts of the coefficient" },
    el("table", { class: "parts" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "term"), [...head.values()].map((label) => el("th", { scope: "col" }, label)))),
      el("tbody", {}, [...Map.groupBy(parts, (one) => one.term)].map(([term, mine]) => el("tr", {},
        el("th", { scope: "row" }, `${term}: ${mine[0].term_label}`),
        [...head.keys()].map((name) => cell(mine.find((one) => factor(one) === name))))))));
}

async function load(place, path) {
  const mine = asked;
  let found = answers.get(path);
  if (!found) {
    replace(place, el("p", { class: "faint" }, "Asking the model; the first time it has to be loaded."));
    place.setAttribute("aria-busy", "true");
    await new Promise((done) => setTimeout(done, WAIT));
    if (mine !== asked) return;
    try {
      found = await get(path);
      if (found.exact) answers.set(path, found); // of others there may be something nearer later
    } catch (error) {
      if (mine === asked) replace(place, el("p", { class: "bad", role: "alert" }, error.message));
    }
  }
  if (mine !== asked) return;
  place.setAttribute("aria-busy", "false");
  if (found) drawActions(place, found);
}

function drawActions(place, found) {
  const columns = [["policy", found.policy], ["reference", found.reference], ["sampler", found.sampler]];
  const shown = columns.filter(([, values]) => values);
  const recorded = found.recorded.logp;
  replace(
    place,
    el("p", { class: "faint", id: "whose" }, `${found.whose.join(" ")} `,
      recorded === undefined || recorded === null ? null : `Recorded probability of the token taken: ${percent(recorded)}. `,
      `It has rank ${found.rank}; the entropy is ${text(found.entropy)} nats.`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Top actions" },
      el("table", { class: "actions" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "#"), el("th", { scope: "col" }, "token"),
          shown.map(([name]) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, found.ids.map((id, index) => {
          const taken = id === found.taken;
          return el("tr", { class: taken ? "taken" : null, "aria-current": taken ? "true" : null },
            el("td", {}, taken ? String(found.rank) : String(index + 1)),
            el("th", { scope: "row" }, el("code", {}, visible(found.words[index]).replaceAll(" ", "␣") || "∅"), taken ? el("small", {}, " taken") : null),
            shown.map(([name, values]) => el("td", { class: `p ${name}` }, bar(values[index]))));
        })))),
  );
}

function bar(value) {
  const box = el("span", { class: "bar", "aria-hidden": "true" });
  box.style.setProperty("--part", `${(100 * value).toFixed(2)}%`);
  return [el("span", { class: "number" }, percent(value)), box];
}

function percent(value) {
  const hundredths = 100 * value;
  return `${value === 0 || value >= 1e-4 ? Number(hundredths.toPrecision(3)) : hundredths.toExponential(1)} %`;
}
