// Making and changing elements. Texts go in as text only, and styles only through the CSSOM, so the
// strict Content-Security-Policy holds and nothing of a stranger's becomes markup.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else setAttribute(element, name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// An HTML element. Attributes that are false or null are left out; "onclick" and the like are listeners.
export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value === true ? "" : value)) {
    element.setAttribute(name, value === true ? "" : value);
  }
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Hide or show. The focus never falls to the body: it goes to `instead` if it is within.
export function setHidden(element, isHidden, instead) {
  if (element.hidden === isHidden) return;
  if (isHidden && element.contains(document.activeElement)) instead?.focus();
  element.hidden = isHidden;
}

// Put a child at a place, and keep the focus within it.
function place(parent, child, before) {
  if (parent.moveBefore && child.parentNode === parent) {
    parent.moveBefore(child, before);
    return;
  }
  const focused = child.contains(document.activeElement) ? document.activeElement : null;
  parent.insertBefore(child, before);
  focused?.focus({ preventScroll: true });
}

const KNOWN = new WeakMap();

// Show one child for each item, in order. A child is made once and then changed in place, so the
// focus, the selection and the reading position stay. `make(item)` returns {element, show(item)}.
export function keyed(parent, items, keyOf, make, instead) {
  const known = KNOWN.get(parent) ?? new Map();
  KNOWN.set(parent, known);
  const keys = new Set(items.map(keyOf));
  for (const [key, one] of known) {
    if (keys.has(key)) continue;
    const hadFocus = one.element.contains(document.activeElement);
    const next = one.element.nextElementSibling ?? one.element.previousElementSibling;
    one.element.remove();
    known.delete(key);
    if (hadFocus) (next?.querySelector("a, button") ?? instead)?.focus();
  }
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let one = known.get(key);
    if (!one) {
      one = make(item);
      known.set(key, one);
      parent.insertBefore(one.element, at);
    } else if (one.element === at) {
      at = at.nextElementSibling;
    } else {
      place(parent, one.element, at);
    }
    one.show(item);
  }
}

// A table whose rows change in place. A cell is a text, or {text, href?, time?, title?, mark?}.
export class Grid {
  #heads;
  #body;
  #more;

  constructor(caption, heads, most = 200) {
    this.#heads = heads.map((head) => (typeof head === "string" ? { text: head } : head));
    this.#body = h("tbody");
    this.#more = h("p", { class: "quiet", hidden: true });
    this.most = most;
    const row = h("tr", {}, ...this.#heads.map((head) => h("th", { scope: "col", class: head.number ? "number" : null }, head.text)));
    const table = h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, row), this.#body);
    this.element = h("div", { class: "frame", tabindex: "0", role: "group", "aria-label": caption }, table, this.#more);
  }

  show(rows) {
    const shown = rows.slice(0, this.most).map((cells, number) => ({ cells, number }));
    keyed(this.#body, shown, (row) => row.number, () => this.#row());
    setHidden(this.#more, rows.length <= this.most);
    setText(this.#more, `and ${(rows.length - this.most).toLocaleString("en")} more`);
  }

  #row() {
    const cells = this.#heads.map((head) => h("td", { class: head.number ? "number" : null }));
    const element = h("tr", {}, ...cells);
    return { element, show: (row) => row.cells.forEach((value, number) => showCell(cells[number], value)) };
  }
}

function showCell(cell, value) {
  const { text, href, time, title, mark } = typeof value === "object" && value !== null ? value : { text: value };
  const tag = href ? "a" : time ? "time" : mark ? "span" : null;
  if (!tag) {
    setText(cell, text);
    setAttribute(cell, "title", title);
    return;
  }
  let inner = cell.firstElementChild;
  if (inner?.localName !== tag) cell.replaceChildren((inner = h(tag)));
  setText(inner, text);
  setAttribute(inner, "href", href);
  setAttribute(inner, "datetime", time);
  setAttribute(inner, "title", title);
  setAttribute(inner, "class", mark);
}

// A list of names and values that change in place.
export class Facts {
  constructor() {
    this.element = h("dl", { class: "facts" });
  }

  show(pairs) {
    const items = pairs.filter(([, value]) => value !== null && value !== undefined);
    keyed(this.element, items, ([name]) => name, ([name]) => {
      const value = h("dd");
      return { element: h("div", {}, h("dt", {}, name), value), show: ([, now]) => showCell(value, now) };
    });
  }
}

// Copy a text, and say so on the button for a moment.
export function copyButton(label, text) {
  const button = h("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", async () => {
    await writeClipboard(text());
    setText(button, "Copied");
    setTimeout(() => setText(button, label), 1500);
  });
  return button;
}

async function writeClipboard(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Without TLS, and not on localhost, a browser has no navigator.clipboard.
  const field = h("textarea", { readonly: true, class: "unseen" });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}
