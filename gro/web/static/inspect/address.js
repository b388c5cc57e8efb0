// A view and its address behind #: step, row, at (token), q (quantity), beside (second row), side (a or b: in which of
// the two the token is), act (1: the actions of the state are shown).

export function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (/^\d+$/.test(asked.get(name) ?? "") ? Number(asked.get(name)) : null);
  return {
    step: number("step"), row: number("row"), at: number("at"), beside: number("beside"),
    q: asked.get("q"), side: asked.get("side") === "b" ? "b" : "a", act: asked.get("act") === "1",
  };
}

export function address(view) {
  const told = new URLSearchParams();
  for (const name of ["step", "row", "at", "q", "beside"]) if (view[name] !== null && view[name] !== undefined) told.set(name, view[name]);
  if (view.side === "b" && view.beside !== null) told.set("side", "b");
  if (view.act) told.set("act", "1");
  return `#${told}`;
}
