// A part of TeX as MathML: letters, numbers, operators, sub- and superscripts, fractions, roots, Greek, sums, text,
// fences and tables.  There are no macros and nothing is defined; a formula with anything else is shown as it was written.

import { el } from "./base.js";

const SYMBOLS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ",
  vartheta: "ϑ", iota: "ι", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ",
  tau: "τ", upsilon: "υ", phi: "ϕ", varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Gamma: "Γ", Delta: "Δ",
  Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω", infty: "∞", partial: "∂",
  nabla: "∇", ell: "ℓ", hbar: "ℏ", emptyset: "∅", prime: "′", angle: "∠", degree: "°", ldots: "…", dots: "…", cdots: "⋯",
};
const OPERATORS = {
  cdot: "⋅", times: "×", div: "÷", pm: "±", mp: "∓", le: "≤", leq: "≤", ge: "≥", geq: "≥", neq: "≠", ne: "≠",
  approx: "≈", equiv: "≡", sim: "∼", propto: "∝", to: "→", rightarrow: "→", leftarrow: "←", Rightarrow: "⇒",
  implies: "⟹", iff: "⟺", Leftrightarrow: "⇔", mapsto: "↦", in: "∈", notin: "∉", subset: "⊂", subseteq: "⊆",
  cup: "∪", cap: "∩", setminus: "∖", forall: "∀", exists: "∃", neg: "¬", land: "∧", lor: "∨", wedge: "∧", vee: "∨",
  mid: "∣", parallel: "∥", perp: "⊥", circ: "∘", star: "⋆", ast: "∗", oplus: "⊕", otimes: "⊗", ll: "≪", gg: "≫",
  langle: "⟨", rangle: "⟩", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", "{": "{", "}": "}", "|": "‖",
  therefore: "∴", because: "∵", vdots: "⋮",
};
const LARGE = { sum: "∑", prod: "∏", int: "∫", iint: "∬", oint: "∮", bigcup: "⋃", bigcap: "⋂" };
const NAMED = new Set("sin cos tan cot sec csc log ln exp lim max min sup inf det dim gcd lcm arg mod Pr arcsin arccos arctan sinh cosh tanh".split(" "));
const SPACES = { ",": "0.17em", ":": "0.22em", ";": "0.28em", " ": "0.3em", quad: "1em", qquad: "2em", "!": "0" };
const IGNORED = new Set(["displaystyle", "textstyle", "limits", "nolimits", "nonumber", "notag", "big", "Big", "bigg", "Bigg"]);
const STYLES = { mathbf: "bold", mathit: "italic", boldsymbol: "bold" };
// Where a style's A stands, and those that stand elsewhere.
const ALPHABETS = {
  mathbb: [0x1d538, { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ", 1: "𝟙" }],
  mathcal: [0x1d49c, { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ" }],
};
const ESCAPED = "%$#&_";
const ACCENTS = { hat: "^", bar: "¯", overline: "¯", vec: "→", tilde: "~", dot: "˙" };
// What stands between \begin and \end as rows and cells: how they are set, and the fences around them.
const TABLES = {
  align: ["aligned"], "align*": ["aligned"], aligned: ["aligned"], split: ["aligned"],
  gather: ["gathered"], "gather*": ["gathered"], gathered: ["gathered"], equation: ["gathered"], "equation*": ["gathered"],
  matrix: ["matrix"], pmatrix: ["matrix", "(", ")"], bmatrix: ["matrix", "[", "]"], Bmatrix: ["matrix", "{", "}"],
  vmatrix: ["matrix", "|", "|"], Vmatrix: ["matrix", "‖", "‖"], cases: ["cases", "{"], array: ["array"],
};
const LONGEST = 2000;
const DEEPEST = 30;
const DEEPEST_TABLE = 4; // each level multiplies what laying it out costs

class Beyond extends Error {}

// The formula; one that we cannot set is its source.
export function maths(source, display = false) {
  try {
    if (source.length > LONGEST) throw new Beyond();
    const tokens = source.match(/\\[A-Za-z]+|\\[\s\S]|\d+(?:\.\d+)?|\s+|[\s\S]/gu) ?? [];
    const reader = { tokens, i: 0, depth: 0, tables: 0 };
    const inside = sequence(reader, []);
    const math = m("math", inside);
    if (display) math.setAttribute("display", "block");
    math.setAttribute("aria-label", source);
    return math;
  } catch (error) {
    if (!(error instanceof Beyond)) throw error;
    return el("code", { class: "tex" }, source);
  }
}

function m(tag, children = [], attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  for (const child of Array.isArray(children) ? children : [children]) node.append(child);
  return node;
}

// Where the table that the text begins with is closed, or -1 where it begins with none.
export function tableEnd(text) {
  const name = /^\\begin\{([A-Za-z]+\*?)\}/.exec(text)?.[1];
  if (!Object.hasOwn(TABLES, name ?? "")) return -1;
  let level = 0;
  for (const found of text.matchAll(/\\(begin|end)\{([A-Za-z]+\*?)\}/g)) {
    if (found[2] !== name) continue;
    level += found[1] === "begin" ? 1 : -1;
    if (level === 0) return found.index + found[0].length;
  }
  return -1;
}

// Everything up to one of `ends`, which is taken too; without any, up to the end.
function sequence(reader, ends) {
  if (++reader.depth > DEEPEST) throw new Beyond();
  const made = [];
  for (;;) {
    const token = reader.tokens[reader.i];
    if (token === undefined) {
      if (ends.length) throw new Beyond();
      break;
    }
    if (ends.includes(token)) {
      reader.i++;
      break;
    }
    const one = scripted(reader);
    if (one) made.push(one);
  }
  reader.depth--;
  return made;
}

// One thing with what stands below and above it.
function scripted(reader) {
  let token = reader.tokens[reader.i];
  const base = token === "_" || token === "^" ? m("mrow") : single(reader);
  if (!base) return null;
  let below = null;
  let above = null;
  for (;;) {
    while (/^\s+$/.test(reader.tokens[reader.i] ?? "")) reader.i++;
    token = reader.tokens[reader.i];
    if (token === "_" && !below) { reader.i++; below = argument(reader); }
    else if (token === "^" && !above) { reader.i++; above = argument(reader); }
    else if (token === "'" && !above) { reader.i++; above = m("mo", "′"); }
    else if (token === "_" || token === "^") throw new Beyond();
    else break;
  }
  if (!below && !above) return base;
  const under = base.getAttribute("data-large") !== null;
  if (below && above) return m(under ? "munderover" : "msubsup", [base, below, above]);
  if (below) return m(under ? "munder" : "msub", [base, below]);
  return m(under ? "mover" : "msup", [base, above]);
}

function argument(reader) {
  while (/^\s+$/.test(reader.tokens[reader.i] ?? "")) reader.i++;
  const token = reader.tokens[reader.i];
  if (token === undefined || token === "}") throw new Beyond();
  if (/^\d+$/.test(token) && token.length > 1) { // x^12 is x¹2
    reader.tokens.splice(reader.i, 1, ...token);
  }
  return single(reader) ?? m("mrow");
}

function single(reader) {
  const token = reader.tokens[reader.i++];
  if (/^\s+$/.test(token)) return null;
  if (token === "{") return m("mrow", sequence(reader, ["}"]));
  if (token === "}" || token === "&" || token === "#" || token === "%" || token === "$") throw new Beyond();
  if (token[0] === "\\") return command(reader, token.slice(1));
  if (/^\d/.test(token)) return m("mn", token);
  if (/^\p{L}$/u.test(token)) return m("mi", token);
  return m("mo", token === "-" ? "−" : token);
}

function command(reader, name) {
  if (Object.hasOwn(SYMBOLS, name)) return m("mi", SYMBOLS[name]);
  if (Object.hasOwn(OPERATORS, name)) return m("mo", OPERATORS[name]);
  if (Object.hasOwn(LARGE, name)) return m("mo", LARGE[name], name.includes("int") ? {} : { "data-large": "" });
  if (NAMED.has(name)) return m("mi", name, ["lim", "max", "min", "sup", "inf"].includes(name) ? { "data-large": "" } : {});
  if (Object.hasOwn(SPACES, name)) return m("mspace", [], { width: SPACES[name] });
  if (IGNORED.has(name)) return null;
  if (["frac", "dfrac", "tfrac"].includes(name)) return m("mfrac", [argument(reader), argument(reader)]);
  if (name === "binom") return m("mrow", [m("mo", "("), m("mfrac", [argument(reader), argument(reader)], { linethickness: "0" }), m("mo", ")")]);
  if (name === "sqrt") return root(reader);
  if (Object.hasOwn(ACCENTS, name)) return m("mover", [argument(reader), m("mo", ACCENTS[name])], { accent: "true" });
  if (name === "boxed") return m("mrow", [argument(reader)], { class: "boxed" });
  if (["text", "textbf", "textit", "textrm", "mbox", "operatorname"].includes(name)) return words(reader);
  if (name === "mathrm") return upright(reader);
  if (Object.hasOwn(ALPHABETS, name)) return lettered(reader, ...ALPHABETS[name]);
  if (ESCAPED.includes(name)) return m("mi", name);
  if (Object.hasOwn(STYLES, name)) return m("mrow", [argument(reader)], { class: STYLES[name] });
  if (name === "left" || name === "right") return fence(reader);
  if (name === "begin") return table(reader);
  throw new Beyond();
}

function root(reader) {
  if (reader.tokens[reader.i] !== "[") return m("msqrt", [argument(reader)]);
  reader.i++;
  const degree = m("mrow", sequence(reader, ["]"]));
  return m("mroot", [argument(reader), degree]);
}

function words(reader) {
  if (reader.tokens[reader.i++] !== "{") throw new Beyond();
  const end = reader.tokens.indexOf("}", reader.i);
  const inside = reader.tokens.slice(reader.i, end);
  if (end < 0 || inside.some((token) => token === "{" || token[0] === "\\")) throw new Beyond();
  reader.i = end + 1;
  return m("mtext", inside.join("").replace(/^\s|\s$/g, "\u00a0")); // MathML takes plain space off the ends
}

function upright(reader) {
  const set = m("mrow", argument(reader));
  for (const letter of set.querySelectorAll("mi")) letter.setAttribute("mathvariant", "normal");
  return set;
}

// Capitals of another alphabet; what it has not is not set.
function lettered(reader, first, special) {
  const set = argument(reader);
  for (const one of set.children.length ? set.children : [set]) {
    const letter = one.textContent;
    if (!Object.hasOwn(special, letter) && !/^[A-Z]$/.test(letter)) throw new Beyond();
    one.textContent = special[letter] ?? String.fromCodePoint(first + letter.charCodeAt(0) - 65);
  }
  return set;
}

function fence(reader) {
  const token = reader.tokens[reader.i++] ?? "";
  if (token === ".") return m("mrow");
  const shown = token[0] === "\\" ? OPERATORS[token.slice(1)] : token;
  if (!shown || !"()[]{}|⟨⟩⌊⌋⌈⌉‖/".includes(shown)) throw new Beyond();
  return m("mo", shown, { stretchy: "true" });
}

function table(reader) {
  const name = braced(reader);
  if (!Object.hasOwn(TABLES, name) || ++reader.tables > DEEPEST_TABLE) throw new Beyond();
  const [how, before, after] = TABLES[name];
  const columns = name === "array" ? braced(reader).replace(/[\s|]/g, "") : "";
  if (/[^lcr]/.test(columns)) throw new Beyond();
  const side = (i) => ({ aligned: i % 2 ? "left" : "right", cases: "left" })[how] ?? { l: "left", r: "right" }[columns[i]] ?? "center";
  const rows = [[]];
  for (let ended = ""; ended !== "\\end";) {
    rows.at(-1).push(sequence(reader, ["&", "\\\\", "\\end"]));
    ended = reader.tokens[reader.i - 1];
    if (ended === "\\\\") {
      distance(reader);
      rows.push([]);
    }
  }
  if (braced(reader) !== name) throw new Beyond();
  reader.tables--;
  if (rows.length > 1 && !rows.at(-1).flat().length) rows.pop(); // what follows the last \\
  const cell = (inside, i) => m("mtd", inside, { columnalign: side(i) });
  const display = ["aligned", "gathered"].includes(how) ? { displaystyle: "true" } : {};
  const set = m("mtable", rows.map((row) => m("mtr", row.map(cell))), { class: how, ...display });
  if (!before) return set;
  const stretched = (sign) => (sign ? [m("mo", sign, { stretchy: "true" })] : []);
  return m("mrow", [...stretched(before), set, ...stretched(after)]);
}

// What stands in braces, as it is written.
function braced(reader) {
  const end = reader.tokens.indexOf("}", reader.i);
  if (reader.tokens[reader.i] !== "{" || end < 0) throw new Beyond();
  const inside = reader.tokens.slice(reader.i + 1, end).join("");
  reader.i = end + 1;
  return inside;
}

// Passes the star and the distance that may follow \\, as in \\*[2pt].
function distance(reader) {
  if (reader.tokens[reader.i] === "*") reader.i++;
  const ahead = reader.tokens.slice(reader.i, reader.i + 9);
  const end = ahead.indexOf("]") + 1;
  if (/^\[-?[\d.]+[a-z]{2}\]$/.test(ahead.slice(0, end).join(""))) reader.i += end;
}
