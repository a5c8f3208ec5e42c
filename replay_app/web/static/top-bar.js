// The top bar, always in sight: which environment, which store and cluster, how many workers, whether
// the page is connected, and who you are.

import { BASE, hasToken } from "./api.js";
import { h, setAttribute, setHidden, setText } from "./dom.js";
import { clock, plural, zoneOf } from "./format.js";
import { state } from "./state.js";

const RED = new Set(["prod", "production", "live"]);
const AMBER = new Set(["staging", "stage", "preprod", "acceptance", "uat"]);
const VIEWS = [["", "Now"], ["history", "History"]];

class TopBar extends HTMLElement {
  #environment = h("span", { class: "environment", hidden: true });
  #store = h("span", { class: "where" });
  #cluster = h("span", { class: "where" });
  #workers = h("span", { class: "workers" });
  #connection = h("span", { id: "connection", class: "connection" });
  #you = h("span", { class: "you", hidden: true });
  #token = h("button", { type: "button", class: "small", hidden: true }, "Token…");
  #start = h("a", { class: "button primary", href: new URL("new", BASE).href }, "New replay");
  #links = VIEWS.map(([path, label]) => h("a", { href: new URL(path, BASE).href }, label));

  connectedCallback() {
    const places = h("div", { class: "places" }, this.#store, this.#cluster, this.#workers);
    this.append(
      h("div", { class: "brand" }, h("a", { href: BASE.href, class: "name" }, "Replays"), this.#environment),
      h("nav", { "aria-label": "Views" }, ...this.#links),
      places,
      h("div", { class: "status" }, this.#connection, this.#you, this.#token, this.#start),
    );
    this.#token.addEventListener("click", () => document.dispatchEvent(new Event("console-token")));
    state.watch(() => this.#show());
    this.#show();
  }

  // Which view is shown; its link says so.
  arrive(path) {
    for (const link of this.#links) setAttribute(link, "aria-current", link.href === new URL(path, BASE).href ? "page" : null);
    setAttribute(this.#start, "aria-current", path === "new" ? "page" : null);
  }

  #show() {
    const { workers, connection } = state;
    setAttribute(this.#connection, "data-kind", connection.kind);
    setText(this.#connection, connection.text);
    setAttribute(document.body, "data-stale", state.isStale && state.asOf !== null);
    if (!workers) return;
    const name = workers.environment ?? "";
    setHidden(this.#environment, !name);
    setText(this.#environment, name);
    const kind = RED.has(name.toLowerCase()) ? "red" : AMBER.has(name.toLowerCase()) ? "amber" : "calm";
    setAttribute(this.#environment, "data-kind", kind);
    setAttribute(document.body, "data-environment", name ? kind : null);
    put(this.#store, "store", workers.store);
    const target = workers.target_cluster && workers.target_cluster !== workers.cluster ? ` → ${workers.target_cluster}` : "";
    put(this.#cluster, "cluster", workers.cluster + target);
    const number = workers.workers.length;
    setText(this.#workers, number ? plural(number, "worker") : workers.trouble ? "workers unknown" : "no worker");
    setAttribute(this.#workers, "title", workers.trouble ?? workers.workers.map(describe).join("\n"));
    const { you } = workers;
    setHidden(this.#you, !you?.name && you?.role !== "read");
    setText(this.#you, [you?.name, you?.role === "read" ? "read only" : null].filter(Boolean).join(", "));
    setHidden(this.#token, you?.role !== "read" && !hasToken(), this.#links[0]);
    setHidden(this.#start, !state.mayOperate, this.#links[0]);
  }
}

function put(element, label, text) {
  setText(element, text);
  setAttribute(element, "data-label", label);
  setAttribute(element, "title", `${label}: ${text}`);
}

const describe = ({ worker_id: id, host, partitions, is_this: isThis }) =>
  `${id} on ${host}, ${plural(partitions, "partition")}${isThis ? " (answers you)" : ""}`;

export const asOf = () => (state.asOf ? `As of ${clock(state.asOf)} ${zoneOf(state.asOf)}` : "");

customElements.define("top-bar", TopBar);
