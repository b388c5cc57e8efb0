// Samples over time: a prompt, and what the run wrote for it at one step after the other.
//
// The controls stay while what they say changes: a slider can be dragged, and a list be open, when news come.

import { el, get, replace } from "../base.js";
import { number } from "./scale.js";

// Of a run that goes on, the list of prompts is asked for again at most so often, and less often where it takes long.
const AGAIN = 5000, SHARE = 20;
const ANY = "any"; // whichever prompts a step has

// look: {view(), go(changes)}; the view's run, prompt and step are what is shown, and null or "" is the newest.
export function sampler(place, look) {
  const data = { runs: [], run: null, prompts: [], shown: null, soonest: 0, version: -1, error: "" };
  const parts = layout();
  let latest = 0;

  const prompt = () => data.prompts.find((one) => one.id === look.view().prompt) ?? data.prompts[0] ?? null;
  const step = () => {
    const steps = prompt()?.steps ?? [];
    return steps.includes(look.view().step) ? look.view().step : steps[steps.length - 1] ?? null;
  };

  // Whatever changed: the runs, or what the view asks for.
  async function update(runs = data.runs) {
    const mine = ++latest;
    data.runs = runs.filter((run) => !["unread", "unreadable", "gone"].includes(run.status));
    const run = data.runs.find((one) => one.name === look.view().run) ?? data.runs[0] ?? null;
    try {
      if (run && isStale(run)) {
        const begun = Date.now(), { prompts } = await get("/api/watch/prompts", { run: run.name });
        if (mine !== latest) return;
        const now = Date.now();
        Object.assign(data, { prompts, version: run.version, soonest: now + Math.max(AGAIN, SHARE * (now - begun)) });
      }
      data.run = run;
      const key = run && prompt() ? `${run.name} ${prompt().id} ${step()}` : "";
      if (key && data.shown?.key !== key) {
        const found = await get("/api/watch/samples", { run: run.name, prompt: prompt().id, step: step() });
        if (mine !== latest) return;
        data.shown = { key, ...found };
        completions(data.shown);
      }
      data.error = "";
    } catch (error) {
      if (mine !== latest) return;
      if (run?.name !== data.run?.name) Object.assign(data, { prompts: [], version: -1 }); // they are of another run
      Object.assign(data, { run, error: error.message });
    }
    draw();
  }

  function isStale(run) {
    if (run.name !== data.run?.name) return true;
    const busy = document.activeElement === parts.prompt;
    return run.version !== data.version && !busy && (!data.prompts.length || Date.now() > data.soonest);
  }

  function layout() {
    const made = {
      run: el("select", { id: "sample-run", onchange: (e) => look.go({ run: e.target.value, prompt: "", step: null }) }),
      prompt: el("select", { id: "sample-prompt", onchange: (e) => look.go({ prompt: e.target.value, step: null }) }),
      before: el("button", { id: "sample-before", "aria-label": "Samples of the step before", onclick: () => walk(-1) }, "‹"),
      after: el("button", { id: "sample-after", "aria-label": "Samples of the next step", onclick: () => walk(1) }, "›"),
      slider: el("input", { id: "sample-step", type: "range", min: "0", step: "1", "aria-label": "Step of the samples",
        oninput: (event) => { const one = prompt(); look.go({ prompt: one.id, step: one.steps[Number(event.target.value)] }); } }),
      told: el("output", { for: "sample-step" }),
      why: el("p", { role: "status" }), body: el("div", { id: "completions" }), hint: el("p", { class: "faint" }),
    };
    made.choose = el("div", { class: "row choose" }, el("label", {}, "Run ", made.run), el("label", { class: "prompts" }, "Prompt ", made.prompt));
    made.walk = el("div", { class: "row" }, made.before, made.slider, made.after, made.told);
    replace(place, el("h2", {}, "Samples over time"), made.choose, made.why, made.walk, made.body, made.hint);
    return made;
  }

  function draw() {
    const one = prompt(), here = step(), index = one ? one.steps.indexOf(here) : -1;
    offer(parts.run, data.runs.map((run) => [run.name, run.name]), data.run?.name);
    offer(parts.prompt, data.prompts.map(named), one?.id);
    parts.run.parentElement.hidden = data.runs.length < 2;
    parts.prompt.parentElement.hidden = parts.walk.hidden = parts.body.hidden = parts.hint.hidden = !one;
    replace(parts.why, data.error || (one ? "" : "no completions are recorded yet"));
    parts.why.className = data.error ? "bad" : "faint";
    if (!one) return;
    parts.slider.max = String(one.steps.length - 1);
    parts.slider.value = String(index);
    parts.slider.disabled = one.steps.length < 2;
    parts.slider.setAttribute("aria-valuetext", `step ${here}`);
    parts.before.disabled = index < 1;
    parts.after.disabled = index + 1 >= one.steps.length;
    replace(parts.told, `step ${here}`);
    replace(parts.hint, "Token by token: ", el("code", {}, data.run.inspect));
  }

  function named({ id, text, steps }) {
    const when = steps.length === 1 ? `step ${steps[0]}` : `${steps.length} steps`;
    return [id, `${id === ANY ? "whichever a step has" : text || "(empty)"} — ${when}`];
  }

  // Choices, made anew only where they differ.
  function offer(select, choices, chosen) {
    const told = JSON.stringify(choices);
    if (select.told !== told) {
      select.told = told;
      replace(select, choices.map(([value, text]) => el("option", { value }, text)));
    }
    if (chosen !== undefined && select.value !== chosen) select.value = chosen;
  }

  function walk(by) {
    const one = prompt(), next = one?.steps[one.steps.indexOf(step()) + by];
    if (next !== undefined) look.go({ prompt: one.id, step: next });
  }

  function completions({ groups, more }) {
    replace(parts.body, groups.map(group), more ? el("p", { class: "faint" }, `and ${more} more prompts`) : null);
  }

  function group({ prompt: text, completions: all, more }) {
    return [
      el("pre", { class: "text prompt" }, text || "(empty)"),
      el("ul", { class: "samples" }, all.map((one) => el("li", {},
        el("small", {}, `reward ${number(one.reward)} · ${one.tokens} tokens${one.finish === "length" ? ", cut off" : ""}${one.role === "sample" ? "" : ` · ${one.role}`}`),
        el("pre", { class: "text" }, one.text || "(empty)")))),
      more ? el("p", { class: "faint" }, `and ${more} more completions`) : null,
    ];
  }

  return { update, walk };
}
