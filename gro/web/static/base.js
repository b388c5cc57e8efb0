// What every page uses.  Text that a model wrote reaches the page through textContent only; the content policy and
// trusted types of the server make the browser refuse every other way.

const ATTRIBUTES = new Set([
  "id", "type", "name", "value", "placeholder", "for", "href", "role", "title", "tabindex", "min", "max", "step",
  "rows", "cols", "colspan", "rowspan", "scope", "draggable", "maxlength", "autocomplete", "lang", "dir", "start",
  "src", "alt", "width", "height", "open", "download", "list", "spellcheck",
]);

// An element: el("button", {class: "big", onclick: send, disabled: true}, "Send").  Children are elements or text;
// null and false are left out.  Addresses are our own: a link elsewhere is an error, not a link.
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

// The same for pictures: svg("circle", {cx: 1, cy: 2, r: 3}).
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children, true);
}

function fill(element, props, children, anyAttribute = false) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") element.setAttribute("class", value);
    else if (key.startsWith("on")) {
      if (typeof value !== "function") throw new TypeError(`${key} takes a function`);
      element.addEventListener(key.slice(2), value);
    } else if (key === "dataset") Object.assign(element.dataset, value);
    else if (key === "style") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
    else if (["disabled", "checked", "hidden", "selected", "readonly", "multiple"].includes(key)) {
      element[key === "readonly" ? "readOnly" : key] = Boolean(value);
    } else if (key === "href" || key === "src") {
      if (!/^(\/(?!\/)|#|\?)/.test(value)) throw new TypeError("links lead to pages of this server only");
      element.setAttribute(key, value);
    } else if (anyAttribute || ATTRIBUTES.has(key) || key.startsWith("aria-") || key.startsWith("data-")) {
      element.setAttribute(key, value);
    } else throw new TypeError(`el() does not set ${key}`);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(element, child);
    else if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(String(child));
  }
}

// Takes everything out of an element and puts these in.
export function replace(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

// An answer that is not 2xx: `status`, and the server's sentence as the message.  Status 0: the server is gone.
export class ApiError extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

const csrf = document.querySelector('meta[name="gro-csrf"]')?.content ?? "";

// Posts JSON, and returns the JSON of the answer.
export async function api(path, body = {}) {
  return ask(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-gro-csrf": csrf },
    body: JSON.stringify(body),
  });
}

// Asks without changing anything: get("/api/items", {page: 2}).
export async function get(path, query = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, v]) => v !== null && v !== undefined));
  return ask(asked.size ? `${path}?${asked}` : path, {});
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", redirect: "error", ...options });
  } catch {
    throw new ApiError(0, "the server does not answer; is it still running in the terminal?");
  }
  let found = {};
  try {
    found = await answer.json();
  } catch {
    if (answer.ok) throw new ApiError(answer.status, "the answer is not JSON");
  }
  if (!answer.ok) throw new ApiError(answer.status, found.error ?? `the server answered ${answer.status}`, found);
  return found;
}

// Keys to functions: keys({"ArrowLeft": back, "Shift+R": reset, "?": help}).  Nothing happens while somebody types
// or holds Ctrl, Alt or Meta.  Returns a function that takes the keys away again.
export function keys(map) {
  const pressed = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (event.target.closest?.("input, textarea, select, [contenteditable]")) return;
    const action = map[event.shiftKey ? `Shift+${event.key}` : event.key] ?? map[event.key];
    if (!action) return;
    // A focused button keeps its Enter and its space.
    if ((event.key === "Enter" || event.key === " ") && event.target.closest?.("button, a, summary")) return;
    event.preventDefault();
    action(event);
  };
  document.addEventListener("keydown", pressed);
  return () => document.removeEventListener("keydown", pressed);
}

// A sentence that is also read out; `kind` is "", "good" or "bad".
export function notice(text, kind = "") {
  let box = document.getElementById("notice");
  if (!box) {
    box = el("div", { id: "notice", role: "status", "aria-live": "polite" });
    document.body.append(box);
  }
  box.className = kind;
  box.textContent = text;
  box.hidden = !text;
}
