// Choosing among many names: a list of checkboxes with a filter. Names that are not listed can be
// typed: a look at the store does not see every type.

import { h, keyed, setHidden, setText } from "./dom.js";
import { count } from "./format.js";

const MOST_SHOWN = 200;

export class Picker {
  chosen = new Set();
  #options = new Map(); // name -> note
  #list = h("div", { class: "options", role: "group" });
  #none = h("p", { class: "quiet", hidden: true });
  #add = h("button", { type: "button", class: "small", hidden: true });

  constructor(label, id, onChange) {
    this.onChange = onChange;
    this.#list.setAttribute("aria-label", `${label} of the store`);
    this.input = h("input", { type: "text", id, autocomplete: "off", spellcheck: "false", placeholder: "filter, or a name that is not listed" });
    this.input.addEventListener("input", () => this.#show());
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // it would send the form
      if (this.input.value.trim()) this.#take();
    });
    this.#add.addEventListener("click", () => this.#take());
    this.element = h("div", { class: "picker" }, h("label", { for: id }, label), this.input, this.#add, this.#list, this.#none);
  }

  #take() {
    const name = this.input.value.trim();
    if (!this.#options.has(name)) this.#options.set(name, "typed");
    this.chosen.add(name);
    this.input.value = "";
    this.input.focus();
    this.#show();
    this.onChange();
  }

  offer(options) {
    this.#options = new Map(options);
    this.#show();
  }

  choose(names) {
    this.chosen = new Set(names);
    this.#show();
  }

  #show() {
    const text = this.input.value.trim();
    for (const name of this.chosen) if (!this.#options.has(name)) this.#options.set(name, "");
    const names = [...this.#options.keys()].filter((name) => name.toLowerCase().includes(text.toLowerCase()));
    const shown = names.slice(0, MOST_SHOWN);
    keyed(this.#list, shown, (name) => name, (name) => this.#option(name), this.input);
    setHidden(this.#none, names.length > 0 && names.length <= MOST_SHOWN);
    setText(this.#none, names.length ? `and ${count(names.length - MOST_SHOWN)} more: filter them` : "none listed");
    setHidden(this.#add, !text || this.#options.has(text), this.input);
    setText(this.#add, `Take “${text}”`);
  }

  #option(name) {
    const box = h("input", { type: "checkbox" });
    const note = h("span", { class: "quiet" });
    box.addEventListener("change", () => {
      if (box.checked) this.chosen.add(name);
      else this.chosen.delete(name);
      this.onChange();
    });
    return {
      element: h("label", { class: "option" }, box, h("span", {}, name), note),
      show: () => {
        box.checked = this.chosen.has(name);
        setText(note, this.#options.get(name) ?? "");
      },
    };
  }
}
