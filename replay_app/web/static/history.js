// History: one dense line for each replay that is kept, with search, filters and pages. The worker
// searches; the page holds one page of rows only.

import { ask } from "./api.js";
import { replayHref } from "./card.js";
import { h, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { age, count, duration, failedOf, filterOf, isEnded, plural, targetOf, titleOf, tookSeconds, UNKNOWN, utc, words } from "./format.js";
import { state } from "./state.js";

const PAGE = 100;
const TYPING_MS = 250;
const AGE_MS = 10000;
const SOON_MS = 1000;
const GROUPS = [
  ["active", "Under way", ["pending", "planning", "waiting", "running", "pausing", "paused", "cancelling"]],
  ["failed", "Failed", ["failed"]],
  ["completed", "Completed", ["completed"]],
  ["errors", "With errors", ["completed_with_errors"]],
  ["cancelled", "Cancelled", ["cancelled"]],
];
const COLUMNS = [["State"], ["Replay"], ["Events"], ["Target"], ["Published", "number"], ["Failed", "number"], ["Took", "number"], ["Age", "number"], ["By"]];

class HistoryView extends HTMLElement {
  static title = "History";
  #rows = h("tbody", { role: "rowgroup" });
  #search = h("input", { type: "search", id: "search", autocomplete: "off", placeholder: "id, name, reason, who, topic, type, chain" });
  #boxes = new Map();
  #total = h("p", { class: "quiet summary", role: "status" });
  #empty = h("p", { class: "empty", hidden: true }, "No replay fits.");
  #problem = h("p", { class: "notice", role: "alert", hidden: true });
  #older = h("button", { type: "button" }, "Older");
  #newer = h("button", { type: "button" }, "Newer");
  #sessions = [];
  #next = null;
  #abort = null;
  #typing = null;
  #generation = null;
  #missed = null;
  #states = new Map();

  connectedCallback() {
    this.heading = h("h1", { tabindex: "-1" }, "History");
    const heads = COLUMNS.map(([text, kind]) => h("th", { scope: "col", role: "columnheader", class: kind }, text));
    const table = h("table", { class: "history", role: "table", "aria-label": "Replays" }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)), this.#rows);
    this.append(h("div", { class: "view-head" }, this.heading, this.#total), this.#filters(), this.#problem, table, this.#empty, h("nav", { class: "pages", "aria-label": "Pages" }, this.#newer, this.#older));
    this.#older.addEventListener("click", () => this.#turn(this.#next));
    this.#newer.addEventListener("click", () => this.#newerPage());
    this.stop = state.watch((ids) => this.#note(ids));
    this.timer = setInterval(() => this.#show(), AGE_MS);
    this.arrive();
  }

  disconnectedCallback() {
    this.stop();
    clearInterval(this.timer);
    clearTimeout(this.#typing);
    clearTimeout(this.#missed);
    this.#abort?.abort();
  }

  #filters() {
    const form = h("form", { class: "filters", role: "search" }, h("label", { for: "search" }, "Search"), this.#search);
    const chips = h("fieldset", { class: "chips" }, h("legend", { class: "unseen" }, "States"));
    for (const [name, label] of GROUPS) {
      const box = h("input", { type: "checkbox", value: name });
      box.addEventListener("change", () => this.#choose());
      this.#boxes.set(name, box);
      chips.append(h("label", { class: "chip" }, box, h("span", {}, label)));
    }
    form.append(chips);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#choose();
    });
    this.#search.addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.#choose(), TYPING_MS);
    });
    return form;
  }

  // The address says what is shown: take it over, and ask for it.
  arrive() {
    const query = new URLSearchParams(location.search);
    if (document.activeElement !== this.#search) this.#search.value = query.get("text") ?? "";
    const groups = new Set(query.getAll("show"));
    for (const [name, box] of this.#boxes) box.checked = groups.has(name);
    setHidden(this.#newer, !query.has("cursor"), this.heading);
    this.#load();
  }

  #choose() {
    clearTimeout(this.#typing);
    const query = new URLSearchParams();
    if (this.#search.value.trim()) query.set("text", this.#search.value.trim());
    for (const [name, box] of this.#boxes) if (box.checked) query.append("show", name);
    history.replaceState(history.state, "", query.size ? `?${query}` : location.pathname);
    this.arrive();
  }

  #turn(cursor) {
    const query = new URLSearchParams(location.search);
    query.set("cursor", cursor);
    history.pushState({ isPage: true }, "", `?${query}`);
    this.arrive();
    this.heading.focus();
  }

  #newerPage() {
    if (history.state?.isPage) {
      history.back();
      return;
    }
    this.#choose(); // the address of a page was opened: go to the first one
  }

  async #load() {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.#generation = state.generation;
    const query = new URLSearchParams(location.search);
    const asked = new URLSearchParams({ limit: PAGE });
    for (const name of ["text", "cursor"]) if (query.has(name)) asked.set(name, query.get(name));
    for (const [name, , states] of GROUPS) if (query.getAll("show").includes(name)) states.forEach((one) => asked.append("state", one));
    try {
      const { replays, next, total } = await ask(`replays?${asked}`, { signal: abort.signal });
      this.#sessions = replays;
      this.#next = next;
      for (const one of replays) this.#states.set(one.replay_id, one.state);
      setText(this.#total, plural(total, "replay"));
      setHidden(this.#problem, true);
    } catch (error) {
      if (abort.signal.aborted) return;
      setText(this.#problem, `The list is not up to date: ${error.message}`);
      setHidden(this.#problem, error.status === undefined); // the top bar says that the worker is away
    }
    this.#show();
  }

  #note(ids) {
    if (state.generation !== this.#generation && !state.isStale) this.#load();
    const isFirstPage = !new URLSearchParams(location.search).has("cursor");
    if (this.#hasNews(ids) && isFirstPage) {
      this.#missed ??= setTimeout(() => {
        this.#missed = null;
        this.#load();
      }, SOON_MS);
    }
    this.#show();
  }

  // Whether a replay is new, gone or in another state: the list may have other rows then.
  #hasNews(ids) {
    let found = false;
    for (const id of ids) {
      const now = state.sessions.get(id)?.state;
      if (this.#states.get(id) !== now) found = true;
      this.#states.set(id, now);
    }
    return found;
  }

  #show() {
    const sessions = this.#sessions.map((one) => newest(one, state.sessions.get(one.replay_id)));
    keyed(this.#rows, sessions, (one) => one.replay_id, makeRow, this.heading);
    setHidden(this.#empty, sessions.length > 0 || state.asOf === null);
    setHidden(this.#older, this.#next === null, this.heading);
  }
}

const newest = (listed, live) => (live && live.revision >= listed.revision && live.created_at === listed.created_at ? live : listed);

function makeRow(session) {
  const cell = (label, className) => h("td", { role: "cell", class: className, "data-label": label });
  const cells = COLUMNS.map(([label, kind]) => cell(label, kind));
  const badge = cells[0].appendChild(h("span", { class: "state" }));
  const link = h("a", { href: replayHref(session.replay_id) });
  const dry = h("span", { class: "badge dry" }, "DRY");
  cells[1].append(dry, " ", link);
  const target = cells[3].appendChild(h("span"));
  const time = cells[7].appendChild(h("time"));
  const element = h("tr", { role: "row" }, ...cells);
  const put = (number, text) => {
    setText(cells[number], text);
    setAttribute(cells[number], "title", text.length > 12 ? text : null);
  };
  return {
    element,
    show(one) {
      setText(badge, one.state === "completed_with_errors" ? "with errors" : words(one.state));
      setAttribute(badge, "title", words(one.state));
      setAttribute(badge, "data-state", one.state);
      setText(link, titleOf(one));
      setAttribute(link, "title", one.start.name ? one.replay_id : null);
      setHidden(dry, !one.start.dry_run);
      put(2, filterOf(one.start));
      const { text, isLive } = targetOf(one, state.workers);
      setText(target, text);
      setAttribute(target, "class", isLive ? "badge live" : null);
      setAttribute(cells[3], "title", text);
      put(4, count(one.plan ? one.counters.published : null));
      const failed = failedOf(one);
      put(5, count(failed));
      setAttribute(cells[5], "class", failed ? "number bad" : "number");
      put(6, isEnded(one) || one.started_at ? duration(tookSeconds(one)) : UNKNOWN);
      setText(time, age(one.created_at));
      setAttribute(time, "datetime", one.created_at);
      setAttribute(time, "title", `${new Date(one.created_at).toLocaleString("en-GB")}, ${utc(one.created_at)}`);
      put(8, one.start.requested_by ?? UNKNOWN);
    },
  };
}

customElements.define("history-view", HistoryView);
export { HistoryView };
