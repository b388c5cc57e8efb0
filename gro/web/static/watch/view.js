// The view lives in the address after #, so that a link or a reload brings it back:
//
//   off, on   names of runs: not drawn; drawn, of those that begin undrawn
//   smooth    the share of a curve over which is averaged     seeds=0   each run for itself
//   x         the axis, where it is not the step              find      part of a panel's name
//   every=1   a panel for every metric
//   big       the enlarged panel                              run, prompt, step   of the samples

export const AXES = ["step", "tokens", "hours"];
export const MANY = 40; // runs after so many begin undrawn

export function fromAddress(smooth) {
  const asked = new URLSearchParams(location.hash.slice(1));
  const share = Number(asked.get("smooth") ?? NaN);
  return {
    off: new Set(asked.getAll("off")), on: new Set(asked.getAll("on")),
    smooth: share >= 0 && share < 1 && asked.get("smooth") !== "" ? share : smooth,
    seeds: asked.get("seeds") !== "0", every: asked.get("every") === "1",
    x: AXES.includes(asked.get("x")) ? asked.get("x") : AXES[0],
    big: asked.get("big") ?? "", find: asked.get("find") ?? "",
    run: asked.get("run") ?? "", prompt: asked.get("prompt") ?? "",
    step: /^\d{1,15}$/.test(asked.get("step") ?? "") ? Number(asked.get("step")) : null,
  };
}

export function address(view, smooth) {
  const told = new URLSearchParams();
  for (const name of ["off", "on"]) for (const run of view[name]) told.append(name, run);
  if (view.smooth !== smooth) told.set("smooth", view.smooth);
  if (view.x !== AXES[0]) told.set("x", view.x);
  if (!view.seeds) told.set("seeds", "0");
  if (view.every) told.set("every", "1");
  for (const name of ["big", "find", "run", "prompt"]) if (view[name]) told.set(name, view[name]);
  if (view.step !== null) told.set("step", view.step);
  return told.size ? `#${told}` : "";
}

export function isOn(view, runs, run) {
  return runs.indexOf(run) < MANY ? !view.off.has(run.name) : view.on.has(run.name);
}

// The two sets after a run was switched.
export function switched(view, runs, run) {
  const which = runs.indexOf(run) < MANY ? "off" : "on";
  const next = new Set(view[which]);
  if (!next.delete(run.name)) next.add(run.name);
  return { [which]: next };
}
