// The ways of asking.  Each has
//   start(n)               the answer so far, of n completions
//   again(answer)          the same of an answer that was taken back, or null
//   head, foot             what stands above and below a completion
//   buttons, key, help     what can be pressed
//   update                 shows the answer so far on a completion
//   answer                 what is sent, or null while something is missing

import { el } from "./base.js";

const title = (place, side = "") => el("div", { class: "head" }, el("strong", {}, side || `${place + 1}`), el("span", { class: "badge" }));
const better = (side) => [side, el("span", { class: "wide" }, " is better")];
const hint = (text, typed) => el("span", { class: "faint" }, text, el("span", { class: "typed" }, typed));
const button = (text, key, onclick, props = {}) => el("button", { onclick, ...props }, text, " ", el("kbd", {}, key));

const pairs = {
  start: () => ({}),
  head: (place) => el("div", { class: "head" }, el("strong", {}, place ? "Right" : "Left")),
  buttons: (context) => [
    button(better("Left"), "←", () => context().send({ choice: 0 }), { class: "main", id: "left" }),
    button("Tie", "↓", () => context().send({ choice: "tie" }), { id: "tie" }),
    button(better("Right"), "→", () => context().send({ choice: 1 }), { class: "main", id: "right" }),
  ],
  key(key, { send }) {
    const choice = { ArrowLeft: 0, ArrowRight: 1, ArrowDown: "tie", t: "tie" }[key];
    if (choice !== undefined) send({ choice });
  },
  help: () => [["←", "the left one is better"], ["→", "the right one is better"], ["↓ or t", "a tie"]],
  answer: () => null,
};

const best = {
  start: () => ({}),
  head: (place, context) => el("div", { class: "head" }, el("strong", {}, `${place + 1}`),
    button("This is the best", `${place + 1}`, () => context().send({ choice: place }))),
  buttons: () => [hint("Which is the best?", " Press its number.")],
  key(key, { send, shown }) {
    if (/^[1-9]$/.test(key) && Number(key) <= shown) send({ choice: Number(key) - 1 });
  },
  help: ({ shown }) => [[`1 – ${shown}`, "this one is the best"]],
  answer: () => null,
};

// `tiers` is best first, each a list of equals; what is in none has no rank yet.
const ranking = {
  start: (n) => ({ n, tiers: [], tie: false }),
  again({ ranks }) {
    const tiers = (ranks ?? []).map((_, better) => ranks.flatMap((rank, i) => (rank === better + 1 ? [i] : [])));
    return ranks ? { n: ranks.length, tiers: tiers.filter((tier) => tier.length), tie: false } : null;
  },
  head: (place, context) => {
    const head = title(place);
    head.append(button("Next best", `${place + 1}`, () => ranking.toggle(place, context())));
    return head;
  },
  prepare(card, place, context) {
    card.setAttribute("draggable", "true");
    card.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/plain", String(place)));
    card.addEventListener("dragover", (event) => { event.preventDefault(); card.classList.add("over"); });
    card.addEventListener("dragleave", () => card.classList.remove("over"));
    card.addEventListener("drop", (event) => {
      event.preventDefault();
      card.classList.remove("over");
      const from = Number(event.dataTransfer.getData("text/plain"));
      if (Number.isInteger(from) && from !== place && from < context().shown) ranking.before(from, place, context());
    });
  },
  // Puts one just above another; whatever had no rank comes last, as shown.
  before(from, onto, { draft, changed, shown }) {
    const ranked = draft.tiers.flat();
    const all = [...draft.tiers, ...Array.from({ length: shown }, (_, i) => i).filter((i) => !ranked.includes(i)).map((i) => [i])];
    const rest = all.map((tier) => tier.filter((i) => i !== from)).filter((tier) => tier.length);
    rest.splice(rest.findIndex((tier) => tier.includes(onto)), 0, [from]);
    draft.tiers = rest;
    changed();
  },
  toggle(place, { draft, changed }) {
    if (draft.tiers.flat().includes(place)) {
      draft.tiers = draft.tiers.map((tier) => tier.filter((i) => i !== place)).filter((tier) => tier.length);
    } else if (draft.tie && draft.tiers.length) draft.tiers.at(-1).push(place);
    else draft.tiers.push([place]);
    draft.tie = false;
    changed();
  },
  key(key, context) {
    const { draft, changed, send, shown } = context;
    if (/^[1-9]$/.test(key) && Number(key) <= shown) ranking.toggle(Number(key) - 1, context);
    else if (key === "t") { draft.tie = !draft.tie; changed(); }
    else if (key === "Backspace") {
      draft.tiers.at(-1)?.pop();
      draft.tiers = draft.tiers.filter((tier) => tier.length);
      changed();
    } else if (key === "Enter" && ranking.answer(draft)) send(ranking.answer(draft));
  },
  buttons: (context) => [
    hint("Best first.", " Press the numbers, or drag."),
    button(["Ties", el("span", { class: "wide" }, " with the one before")], "t", () => ranking.key("t", context()), { id: "tie" }),
    button("Send", "Enter", () => ranking.key("Enter", context()), { class: "main", id: "send" }),
  ],
  help: ({ shown }) => [[`1 – ${shown}`, "this one is the next best; again: takes it out"], ["t", "the next one ties with the one before"],
    ["Backspace", "takes the last one out"], ["Enter", "send"]],
  update(card, place, { draft }) {
    const rank = ranks(draft)[place];
    const badge = card.querySelector(".badge");
    badge.textContent = rank ? `rank ${rank}` : "–";
    badge.classList.toggle("given", Boolean(rank));
    document.getElementById("tie")?.setAttribute("aria-pressed", String(draft.tie));
  },
  answer: (draft) => {
    const found = ranks(draft);
    return found.every(Boolean) ? { ranks: found } : null;
  },
};

// 1 + the number of better ones; 0: none yet.
function ranks({ n, tiers }) {
  const found = Array(n).fill(0);
  let better = 0;
  for (const tier of tiers) {
    for (const i of tier) found[i] = better + 1;
    better += tier.length;
  }
  return found;
}

const scores = {
  start: (n) => ({ scores: Array(n).fill(0), current: 0 }),
  again: ({ scores }) => (scores ? { scores: [...scores], current: 0 } : null),
  head: (place) => title(place),
  foot: (place, context) => el("div", { class: "scores", role: "group", "aria-label": `Score of ${place + 1}` },
    Array.from({ length: context().top }, (_, i) => el("button", { onclick: () => scores.give(place, i + 1, context()), dataset: { score: i + 1 } }, i + 1))),
  give(place, score, { draft, changed }) {
    draft.scores[place] = score;
    const missing = draft.scores.indexOf(0, place);
    draft.current = missing >= 0 ? missing : Math.max(draft.scores.indexOf(0), 0) || place;
    changed();
  },
  key(key, context) {
    const { draft, changed, send, shown, top } = context;
    const score = key === "0" && top === 10 ? 10 : Number(key);
    if (/^\d$/.test(key) && score >= 1 && score <= top) scores.give(draft.current, score, context);
    else if (key === "ArrowLeft" || key === "ArrowUp") { draft.current = Math.max(0, draft.current - 1); changed(); }
    else if (key === "ArrowRight" || key === "ArrowDown") { draft.current = Math.min(shown - 1, draft.current + 1); changed(); }
    else if (key === "Backspace") { draft.scores[draft.current] = 0; changed(); }
    else if (key === "Enter" && scores.answer(draft)) send(scores.answer(draft));
  },
  buttons: (context) => [
    hint(`${context().top} is best.`, ` Press 1 – ${context().top === 10 ? "9, 0 for 10" : context().top}.`),
    button("Send", "Enter", () => scores.key("Enter", context()), { class: "main", id: "send" }),
  ],
  help: ({ top }) => [[top === 10 ? "1 – 9, 0" : `1 – ${top}`, "score the marked one" + (top === 10 ? " (0 is 10)" : "")],
    ["← →", "mark another"], ["Backspace", "take its score back"], ["Enter", "send"]],
  update(card, place, { draft, shown }) {
    const current = shown > 1 && place === draft.current;
    if (current && !card.classList.contains("current")) card.scrollIntoView({ block: "nearest" });
    card.classList.toggle("current", current);
    const badge = card.querySelector(".badge");
    badge.textContent = draft.scores[place] || "–";
    badge.classList.toggle("given", draft.scores[place] > 0);
    for (const b of card.querySelectorAll(".scores button")) b.setAttribute("aria-pressed", String(Number(b.dataset.score) === draft.scores[place]));
  },
  answer: (draft) => (draft.scores.every((s) => s > 0) ? { scores: draft.scores } : null),
};

export const KINDS = { pairs, best, ranking, score5: scores, score10: scores };
