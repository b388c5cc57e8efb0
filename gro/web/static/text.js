// Text that a model wrote, as nodes: plain, or with the Markdown and maths that it uses.
//
// Nothing here reads HTML: every character of the text ends in a text node, so a <script> is seven letters and a bit.
// Links are words with their address behind them, and lead nowhere.  What is not visible is made visible.

import { el } from "./base.js";
import { maths, tableEnd } from "./maths.js";

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
const LONGEST = 200_000; // characters; beyond it Markdown is not looked for
const DEEPEST = 12; // levels of lists and quotations
const TALLEST = 40; // lines of a formula
const WIDEST = 200; // cells of a row

// The text as it is; control characters, marks of direction and other invisible ones by their number.
export function plain(text) {
  const box = document.createDocumentFragment();
  let from = 0;
  for (const found of text.matchAll(HIDDEN)) {
    box.append(text.slice(from, found.index));
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    if (found[0] !== "\r") box.append(el("span", { class: "hidden-char", title: "an invisible character" }, `U+${code}`));
    from = found.index + found[0].length;
  }
  box.append(text.slice(from));
  return box;
}

export function markdown(text) {
  if (text.length > LONGEST) return el("div", { class: "plain" }, plain(text));
  return el("div", { class: "markdown" }, blocks(text.replaceAll("\r\n", "\n").split("\n"), 0));
}

// --- blocks ---

function blocks(lines, depth) {
  if (depth > DEEPEST) return [el("p", {}, plain(lines.join("\n")))];
  const made = [];
  let i = 0;
  while (i < lines.length) {
    const [node, next] = block(lines, i, depth);
    if (node) made.push(node);
    i = next;
  }
  return made;
}

// The block that begins at line i, and the line behind it.
function block(lines, i, depth) {
  const line = lines[i];
  if (!line.trim()) return [null, i + 1];
  return (
    fence(lines, i) ?? display(lines, i) ?? heading(line, i, depth) ?? quotation(lines, i, depth) ??
    list(lines, i, depth) ?? table(lines, i) ?? paragraph(lines, i)
  );
}

function fence(lines, i) {
  const opened = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})/.exec(lines[i]);
  if (!opened) return null;
  let end = i + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(opened[1]) && /^\s*[`~]+\s*$/.test(lines[end]))) end++;
  return [el("pre", {}, el("code", {}, plain(lines.slice(i + 1, end).join("\n")))), end + 1];
}

// Maths on lines of its own: $$ … $$, \[ … \] or \begin{align} … \end{align}.
function display(lines, i) {
  const start = lines[i].trim();
  if (start.startsWith("\\begin{")) {
    const all = lines.slice(i, i + TALLEST).join("\n").trimStart();
    const end = tableEnd(all);
    const rest = all.slice(end).split("\n", 1)[0];
    if (end < 0) return null;
    return [el("div", { class: "display" }, maths(all.slice(0, end), true), inline(rest)), i + all.slice(0, end).split("\n").length];
  }
  for (const [open, close] of [["$$", "$$"], ["\\[", "\\]"]]) {
    if (!start.startsWith(open)) continue;
    for (let end = i; end < Math.min(lines.length, i + TALLEST); end++) {
      const all = lines.slice(i, end + 1).join("\n").trim();
      if (all.length >= open.length + close.length && all.endsWith(close)) {
        return [el("div", { class: "display" }, maths(all.slice(open.length, -close.length).trim(), true)), end + 1];
      }
    }
  }
  return null;
}

function heading(line, i) {
  if (/^ {0,3}([-*_])\s*(\1\s*){2,}$/.test(line)) return [el("hr"), i + 1];
  const found = /^ {0,3}(#{1,6})\s+(.*)$/s.exec(line);
  // A model's headings are below the page's own.
  return found && [el(`h${Math.min(found[1].length + 2, 6)}`, {}, inline(found[2].trimEnd().replace(/(?<=\s)#+$/, "").trimEnd())), i + 1];
}

function quotation(lines, i, depth) {
  if (!/^ {0,3}>/.test(lines[i])) return null;
  let end = i;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end++;
  const inside = lines.slice(i, end).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return [el("blockquote", {}, blocks(inside, depth + 1)), end];
}

const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(.*)$/;

function list(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = i;
  while (end < lines.length) {
    const line = lines[end];
    const found = ITEM.exec(line);
    const indent = line.search(/\S/);
    if (found && found[1].length <= first[1].length + 1) {
      if (/\d/.test(found[2]) !== ordered) break;
      items.push([found[4]]);
    } else if (indent < 0) {
      const next = lines[end + 1] ?? "";
      if (!next.trim() || (next.search(/\S/) <= first[1].length && !ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (indent > first[1].length) {
      items.at(-1).push(line.slice(Math.min(indent, first[1].length + first[2].length + 1)));
    } else if (lines[end - 1].trim()) {
      items.at(-1).push(line);
    } else break;
    end++;
  }
  const start = ordered ? { start: parseInt(first[2], 10) } : {};
  return [el(ordered ? "ol" : "ul", start, items.map((item) => el("li", {}, tight(blocks(item, depth + 1))))), end];
}

// A list item of one paragraph is its words.
function tight(nodes) {
  const [first, ...rest] = nodes;
  return first?.tagName === "P" ? [...first.childNodes, ...rest] : nodes;
}

function table(lines, i) {
  if (!beginsTable(lines, i)) return null;
  const head = cells(lines[i]);
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const rows = lines.slice(i + 2, end).map((line) => cells(line).slice(0, head.length));
  return [
    el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, rows.map((r) => row("td", r)))),
    end,
  ];
}

// A head, and below it as many cells of dashes.
function beginsTable(lines, i) {
  const next = lines[i + 1] ?? "";
  if (!lines[i].includes("|") || !next.includes("|") || /[^-:|\s]/.test(next) || !next.includes("-")) return false;
  const dashes = cells(next);
  return dashes.length <= WIDEST && dashes.every((cell) => /^:?-+:?$/.test(cell)) && dashes.length === cells(lines[i]).length;
}

// A bar ends a cell, in code too, unless it is written \| or stands in maths.
const IN_A_ROW = /\\\([^`]{1,500}?\\\)|(?<!\w)\$(?!\s)(?:\\.|[^$`\\])+(?<!\s)\$(?!\d)|\\.|\|/g;

function cells(line) {
  const text = line.trim();
  const found = [""];
  let from = 0;
  for (const { 0: one, index } of text.matchAll(IN_A_ROW)) {
    found[found.length - 1] += text.slice(from, index) + (one === "\\|" ? "|" : one === "|" ? "" : one);
    if (one === "|") found.push("");
    from = index + one.length;
  }
  found[found.length - 1] += text.slice(from);
  if (found[0] === "") found.shift();
  if (found.at(-1) === "") found.pop();
  return found.map((cell) => cell.trim());
}

function row(tag, found) {
  return el("tr", {}, found.map((cell) => el(tag, {}, inline(cell))));
}

function paragraph(lines, i) {
  let end = i + 1;
  while (end < lines.length && lines[end].trim() && !/^ {0,3}(#{1,6}\s|>|`{3}|~{3}|\$\$|\\\[|\\begin\{)/.test(lines[end])) {
    if (ITEM.test(lines[end]) || beginsTable(lines, end)) break;
    end++;
  }
  return [el("p", {}, inline(lines.slice(i, end).join("\n"))), end];
}

// --- inside a line ---

// Each opens something that ends at its mate, which is looked for in a bounded stretch.
const MARKS = [
  ["`", "`", (t) => el("code", {}, plain(t))],
  ["\\(", "\\)", (t) => maths(t)],
  ["\\[", "\\]", (t) => maths(t.trim(), true)],
  ["$$", "$$", (t) => maths(t.trim(), true)],
  ["$", "$", (t) => maths(t)],
  ["**", "**", (t, d) => el("strong", {}, inline(t, d))],
  ["__", "__", (t, d) => el("strong", {}, inline(t, d))],
  ["~~", "~~", (t, d) => el("s", {}, inline(t, d))],
  ["*", "*", (t, d) => el("em", {}, inline(t, d))],
  ["_", "_", (t, d) => el("em", {}, inline(t, d))],
];
const FAR = 2000;

function inline(text, depth = 0) {
  const made = [];
  let from = 0;
  let i = 0;
  const special = /[`\\$*_~[!\n]/g;
  while (depth <= DEEPEST) {
    special.lastIndex = i;
    const at = special.exec(text)?.index;
    if (at === undefined) break;
    const found = escaped(text, at) ?? link(text, at, depth) ?? environment(text, at) ?? marked(text, at, depth);
    if (!found) {
      i = at + 1;
      continue;
    }
    made.push(plain(text.slice(from, at)), found[0]);
    from = i = found[1];
  }
  made.push(plain(text.slice(from)));
  return made;
}

function escaped(text, i) {
  if (text[i] === "\n") return [text.slice(0, i).endsWith("  ") ? el("br") : "\n", i + 1];
  return text[i] === "\\" && /[!-'*-/:-@[-`{-~]/.test(text[i + 1] ?? "") && text[i + 1] !== "[" ? [text[i + 1], i + 2] : null;
}

// [words](address), and pictures: the words, and the address as text.
function link(text, i, depth) {
  const picture = text[i] === "!";
  const open = picture ? i + 1 : i;
  if (text[open] !== "[") return null;
  const middle = text.slice(open, open + FAR).indexOf("](");
  if (middle < 0) return null;
  const close = balanced(text.slice(open + middle + 1, open + middle + FAR)) + 1;
  if (close === 0) return null;
  const words = text.slice(open + 1, open + middle);
  const address = text.slice(open + middle + 2, open + middle + close);
  const node = el("span", { class: "inert", title: picture ? "a picture, not loaded" : "a link, not followed" },
    inline(words, depth + 1), el("span", { class: "address" }, " (", plain(address), ")"));
  return [node, open + middle + close + 1];
}

// Where the parenthesis that the text begins with is closed, or -1.
function balanced(text) {
  let level = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "(") level++;
    else if (text[i] === ")" && --level === 0) return i;
  }
  return -1;
}

// \begin{align} … \end{align} within a line.
function environment(text, i) {
  if (!text.startsWith("\\begin{", i)) return null;
  const stretch = text.slice(i, i + FAR);
  const end = tableEnd(stretch);
  return end < 0 ? null : [maths(stretch.slice(0, end), true), i + end];
}

function marked(text, i, depth) {
  for (const [open, close, make] of MARKS) {
    if (!text.startsWith(open, i)) continue;
    let start = i + open.length;
    let end = closing(text, start, open, close);
    if (open === "`" && text.startsWith("``", i)) {
      const run = /^`+/.exec(text.slice(i, i + FAR))[0];
      start = i + run.length;
      end = text.slice(start, start + FAR).indexOf(run);
      if (end < 0) return null;
      return [el("code", {}, plain(text.slice(start, start + end).trim())), start + end + run.length];
    }
    if (end >= 0 && flanked(text, i, start, end, open)) return [make(text.slice(start, end), depth + 1), end + close.length];
  }
  return null;
}

function closing(text, start, open, close) {
  const stretch = text.slice(start, start + FAR);
  let end = stretch.indexOf(close);
  // One star does not close at the first of two.
  while (close.length === 1 && "*_".includes(close) && end >= 0 && stretch[end + 1] === close) {
    end = stretch.indexOf(close, end + 2);
  }
  while (close === "$" && stretch[end - 1] === "\\") end = stretch.indexOf(close, end + 1); // $\$18$ is a price
  return end <= 0 ? -1 : start + end;
}

// 5 * 3 * 2 is no emphasis, $5 and $6 no maths, and snake_case_names keep their bars.
function flanked(text, i, start, end, open) {
  if (["`", "\\(", "\\["].includes(open)) return true;
  if (open === "$$") return text.slice(start, end).trim() !== "";
  if (/\s/.test(text[start]) || /\s/.test(text[end - 1])) return false;
  if (open === "$") return !/\d/.test(text[end + 1] ?? "") && !text.slice(start, end).includes("\n\n");
  if (open[0] === "_") return !/\w/.test(text[i - 1] ?? "") && !/\w/.test(text[end + open.length] ?? "");
  return true;
}
