// New replay: which events, where to, how; the plan beside it; then a dry run, or the start.

import { ask } from "./api.js";
import { replayHref } from "./card.js";
import { give } from "./commands.js";
import { fieldsOf, OPERATORS, rowsOf } from "./conditions.js";
import { copyButton, h, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { count, second, utc, zoneOf } from "./format.js";
import { Picker } from "./picker.js";
import { PlanPane } from "./plan.js";
import { bodyOf, cliOf, curlOf } from "./shell.js";
import { state } from "./state.js";
import { readTime } from "./times.js";

const TYPES_MS = 500;
const DEFAULT_PREFIX = "rebuild.";
const TEXTS = ["name", "reason"];
const NUMBERS = ["rate", "max_events"];
const CHOICES = { ordering: ["global", "aggregate"], on_error: ["fail", "skip", "dead-letter", "park"] };
const HANDLED = new Set([...TEXTS, ...NUMBERS, ...Object.keys(CHOICES), "filter", "target", "source", "dry_run", "to_original"]);
// A replay that runs again is none of the chain of the first one.
const LEFT_OUT = new Set(["chain", "after", "dry_run"]);
const SOURCE = ["database", "collection", "mapping"];
const LABELS = {
  name: "Name", reason: "Reason", rate: "Rate, events/s", max_events: "Only the first events",
  ordering: "Order", on_error: "If an event fails", database: "Database", collection: "Collection", mapping: "Mapping",
};
const SAYS = {
  global: "by time", aggregate: "by time within each aggregate, on many workers", fail: "stop the replay",
  skip: "skip it", "dead-letter": "write a dead letter", park: "dead-letter it and what follows in its aggregate",
};

const lines = (text) => text.split(/[\n,]/).map((one) => one.trim()).filter(Boolean);
let numberOfIds = 0;

function field(label, input, note) {
  input.id ||= `f-${(numberOfIds += 1)}`;
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, note ?? null);
}

// A time as people write it, with what it means below.
class TimeField {
  value = null; // an RFC 3339 time; null: no bound
  isWrong = false;
  #input = h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "2026-01-10 14:00, 2h ago, yesterday" });
  #note = h("p", { class: "quiet note" });

  constructor(label, onChange) {
    this.onChange = onChange;
    this.element = field(label, this.#input, this.#note);
    this.#note.id = `${this.#input.id}-note`;
    this.#input.setAttribute("aria-describedby", this.#note.id);
    this.#input.addEventListener("input", () => {
      this.#read();
      this.onChange();
    });
  }

  #read() {
    const moment = this.#input.value.trim() ? readTime(this.#input.value) : null;
    this.isWrong = Boolean(this.#input.value.trim()) && moment === null;
    this.value = moment === null ? null : moment.toISOString();
    setAttribute(this.#input, "aria-invalid", this.isWrong ? "true" : null);
    const says = moment === null ? "" : `${second(this.value)} ${zoneOf(moment)} (${utc(this.value)})`;
    setText(this.#note, this.isWrong ? "no time that can be read" : says);
  }

  set(iso) {
    this.#input.value = iso ?? "";
    this.#read();
  }
}

class Conditions {
  #rows = [];
  #next = 0;
  #list = h("div", { class: "conditions" });
  #paths = h("datalist", { id: "paths" });
  #fields = new Map();

  constructor(onChange) {
    this.onChange = onChange;
    this.add = h("button", { type: "button", class: "small" }, "Add a condition on a field");
    this.add.addEventListener("click", () => {
      const row = this.#new();
      this.#show();
      this.#list.querySelector(`[data-row="${row.key}"] input`)?.focus();
    });
    this.element = h("div", {}, this.#list, this.add, this.#paths);
  }

  #new(values = { path: "", operator: "eq", text: "" }) {
    const row = { key: (this.#next += 1), ...values };
    this.#rows.push(row);
    return row;
  }

  offer(fields) {
    this.#fields = new Map(fields.map((one) => [one.path, one]));
    const shown = fields.map((one) => h("option", { value: one.path }, `${one.types.join(", ")}, such as ${one.example}`));
    this.#paths.replaceChildren(...shown);
    this.#show();
  }

  set(fields) {
    this.#rows = [];
    for (const one of rowsOf(fields)) this.#new(one);
    this.#show();
  }

  get value() {
    return fieldsOf(this.#rows, (path) => this.#fields.get(path)?.types ?? []);
  }

  #show() {
    keyed(this.#list, this.#rows, (row) => row.key, (row) => this.#row(row), this.add);
  }

  #row(row) {
    const path = h("input", { type: "text", list: "paths", "aria-label": "Field", placeholder: "field", autocomplete: "off", spellcheck: "false" });
    const operator = h("select", { "aria-label": "Condition" }, ...OPERATORS.map(([name, label]) => h("option", { value: name }, label)));
    const text = h("input", { type: "text", "aria-label": "Value", placeholder: "value", autocomplete: "off", spellcheck: "false" });
    const note = h("p", { class: "quiet note" });
    const remove = h("button", { type: "button", class: "small" }, "Remove");
    Object.assign(path, { value: row.path });
    Object.assign(operator, { value: row.operator });
    Object.assign(text, { value: row.text });
    const read = () => {
      Object.assign(row, { path: path.value, operator: operator.value, text: text.value });
      this.#explain(row, note);
      this.onChange();
    };
    for (const one of [path, operator, text]) one.addEventListener("input", read);
    remove.addEventListener("click", () => {
      this.#rows = this.#rows.filter((one) => one !== row);
      this.#show();
      this.onChange();
    });
    return { element: h("div", { class: "condition", "data-row": row.key }, path, operator, text, remove, note), show: () => this.#explain(row, note) };
  }

  #explain(row, note) {
    const known = this.#fields.get(row.path.trim());
    setText(note, known ? `${known.types.join(", ")}, such as ${known.example}` : row.path.trim() && this.#fields.size ? "not seen among the events that were looked at" : "");
  }
}

function radio(name, value, label) {
  const input = h("input", { type: "radio", name, value });
  return { input, element: h("label", { class: "radio" }, input, h("span", {}, label)) };
}

class StartView extends HTMLElement {
  static title = "New replay";
  #start = new TimeField("From", () => this.#changed());
  #end = new TimeField("Until", () => this.#changed());
  #types = new Picker("Event types", "types", () => this.#changed());
  #typesMode = h("select", { "aria-label": "What the chosen types mean" }, h("option", { value: "event_types" }, "only the chosen types"), h("option", { value: "exclude_event_types" }, "all but the chosen types"));
  #conditions = new Conditions(() => this.#changed());
  #aggregates = h("textarea", { rows: "2", spellcheck: "false" });
  #events = h("textarea", { rows: "2", spellcheck: "false" });
  #all = h("input", { type: "checkbox" });
  #typesNote = h("p", { class: "quiet note", role: "status" });
  #where = { prefix: radio("where", "prefix", "Topics with a prefix"), topic: radio("where", "topic", "One topic"), live: radio("where", "live", "The LIVE topics of the events") };
  #prefix = h("input", { type: "text", value: DEFAULT_PREFIX, autocomplete: "off", spellcheck: "false" });
  #topic = h("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  #liveName = h("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  #liveWhy = h("p", { class: "bad" });
  #liveBox = h("div", { class: "live-box", hidden: true });
  #inputs = {};
  #rest = h("textarea", { rows: "4", spellcheck: "false", class: "mono" });
  #restNote = h("p", { class: "quiet note" });
  #mayNot = h("p", { class: "notice", hidden: true }, "Your token may only read: it starts no replay.");
  #noLive = h("p", { class: "quiet note", hidden: true }, "This installation forbids replays to live topics.");
  #why = h("p", { class: "quiet note", role: "status" });
  #dryRun = h("button", { type: "submit", name: "dry", value: "dry" }, "Dry run");
  #go = h("button", { type: "submit", class: "primary" }, "Start");
  #plan = new PlanPane(() => this.#judge());
  #topics = {}; // of the target, by type: kept from the replay that runs again
  #typesTimer = null;

  connectedCallback() {
    this.heading = h("h1", { tabindex: "-1" }, "New replay");
    const form = h("form", { class: "start", novalidate: true }, this.#which(), this.#whereTo(), this.#how());
    const copies = h("div", { class: "buttons copies" }, copyButton("Copy JSON", () => JSON.stringify(this.#body(), null, 2)), copyButton("Copy curl", () => curlOf(this.#body())), copyButton("Copy command line", () => cliOf(this.#body())));
    const side = h("section", { class: "panel plan-panel", "aria-labelledby": "plan-title" }, h("h2", { id: "plan-title" }, "Plan"), this.#plan.head, this.#liveBox, this.#why, h("div", { class: "buttons go" }, this.#dryRun, this.#go, copies), this.#plan.element);
    form.append(side);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(event.submitter === this.#dryRun);
    });
    form.addEventListener("input", (event) => {
      if (event.target !== this.#liveName) this.#changed();
      else this.#judge();
    });
    this.append(h("div", { class: "view-head" }, this.heading), this.#mayNot, form);
    this.stop = state.watch(() => this.#showRights());
    this.#where.prefix.input.checked = true;
    this.#showRights();
    this.#fill();
  }

  disconnectedCallback() {
    this.stop();
    this.#plan.stop();
    clearTimeout(this.#typesTimer);
  }

  #which() {
    this.#typesMode.classList.add("mode");
    const picked = h("div", {}, this.#types.element, this.#typesMode, this.#typesNote);
    const ids = h("details", {}, h("summary", {}, "Single aggregates or events"), field("Aggregate ids, one a line", this.#aggregates), field("Event ids, one a line", this.#events));
    const from = h("details", {}, h("summary", {}, "Another collection"), ...SOURCE.map((name) => field(LABELS[name], this.#input(name))));
    for (const name of SOURCE) this.#inputs[name].addEventListener("input", () => this.#lookLater());
    const all = h("label", { class: "radio" }, this.#all, h("span", {}, "Every event of the collection"));
    return h("fieldset", { class: "panel" }, h("legend", {}, "Which events"), h("div", { class: "pair" }, this.#start.element, this.#end.element), picked, this.#conditions.element, ids, from, all);
  }

  #whereTo() {
    const { prefix, topic, live } = this.#where;
    this.#liveName.id = "live-name";
    this.#liveBox.append(h("label", { for: "live-name" }, "To start, type the name of the topic"), this.#liveWhy, this.#liveName);
    return h("fieldset", { class: "panel" }, h("legend", {}, "Where to"), prefix.element, field("Prefix", this.#prefix), topic.element, field("Topic", this.#topic), live.element, this.#noLive);
  }

  #input(name, type = "text") {
    return (this.#inputs[name] = h("input", { type, autocomplete: "off", ...(type === "number" ? { min: "0.001", step: "any", inputmode: "decimal" } : {}) }));
  }

  #how() {
    for (const [name, values] of Object.entries(CHOICES)) this.#inputs[name] = h("select", {}, ...values.map((value) => h("option", { value }, SAYS[value])));
    const names = ["name", "reason"].map((name) => field(LABELS[name], this.#input(name)));
    const numbers = NUMBERS.map((name) => field(LABELS[name], this.#input(name, "number")));
    const choices = Object.keys(CHOICES).map((name) => field(LABELS[name], this.#inputs[name]));
    const rest = h("details", {}, h("summary", {}, "Everything else"), field("Further members of the command, as JSON", this.#rest, this.#restNote));
    return h("fieldset", { class: "panel" }, h("legend", {}, "How"), h("div", { class: "pair" }, ...names, ...numbers, ...choices), rest);
  }

  // What may be done here: this depends on the token and on the installation.
  #showRights() {
    const isAllowed = state.workers?.allow_original !== false;
    setHidden(this.#mayNot, state.mayOperate);
    setHidden(this.#where.live.element, !isAllowed, this.#where.prefix.input);
    setHidden(this.#noLive, isAllowed);
    this.#judge();
  }

  // Fill the form: from a replay that is to run again, or with nothing.
  async #fill() {
    const id = new URLSearchParams(location.search).get("again");
    if (id) {
      try {
        const { start } = state.sessions.get(id) ?? (await state.fetch(id));
        if (this.isConnected) this.#set(start);
      } catch (error) {
        setText(this.#typesNote, `${id} cannot be read: ${error.message}`);
      }
    }
    this.#look();
    this.#changed();
  }

  #set(start) {
    const { filter = {}, target = {}, source = {} } = start;
    this.#start.set(filter.start);
    this.#end.set(filter.end);
    const isExcluding = !filter.event_types?.length && filter.exclude_event_types?.length > 0;
    this.#typesMode.value = isExcluding ? "exclude_event_types" : "event_types";
    this.#types.choose(isExcluding ? filter.exclude_event_types : filter.event_types ?? []);
    this.#conditions.set(filter.fields);
    this.#aggregates.value = (filter.aggregate_ids ?? []).join("\n");
    this.#events.value = (filter.event_ids ?? []).join("\n");
    this.#all.checked = Boolean(filter.all);
    for (const name of SOURCE) this.#inputs[name].value = source[name] ?? "";
    const kind = target.prefix ? "prefix" : target.topic ? "topic" : "live";
    this.#where[kind].input.checked = true;
    if (target.prefix) this.#prefix.value = target.prefix;
    if (target.topic) this.#topic.value = target.topic;
    this.#topics = target.topics ?? {};
    for (const name of [...TEXTS, ...NUMBERS, ...Object.keys(CHOICES)]) if (start[name] !== null && start[name] !== undefined) this.#inputs[name].value = start[name];
    const rest = Object.entries(bodyOf(start)).filter(([name]) => !HANDLED.has(name) && !LEFT_OUT.has(name));
    this.#rest.value = rest.length ? JSON.stringify(Object.fromEntries(rest), null, 2) : "";
    if (rest.length) this.#rest.closest("details").open = true;
  }

  #lookLater() {
    clearTimeout(this.#typesTimer);
    this.#typesTimer = setTimeout(() => this.#look(), TYPES_MS);
  }

  // Ask which types and fields the store holds.
  async #look() {
    const query = new URLSearchParams();
    for (const name of SOURCE) if (this.#inputs[name].value.trim()) query.set(name, this.#inputs[name].value.trim());
    setText(this.#typesNote, "looking at the store …");
    try {
      const { types, fields, looked_at: looked, warnings } = await ask(`types?${query}`, { timeout: 30000 });
      if (!this.isConnected) return;
      this.#types.offer(types.map((one) => [one.name, [one.topic, one.events === null ? null : `${count(one.events)} seen`].filter(Boolean).join(", ")]));
      this.#conditions.offer(fields);
      setText(this.#typesNote, [`A look at ${count(looked)} events: rare types may be missing.`, ...warnings].join(" "));
    } catch (error) {
      setText(this.#typesNote, `The types and fields are unknown: ${error.message}. Names can be typed.`);
    }
  }

  get #kind() {
    return Object.entries(this.#where).find(([, one]) => one.input.checked)?.[0] ?? "prefix";
  }

  #filter() {
    const filter = {};
    const put = (name, value) => {
      if (value?.length || (value && typeof value === "object" && Object.keys(value).length)) filter[name] = value;
    };
    put("start", this.#start.value);
    put("end", this.#end.value);
    put(this.#typesMode.value, [...this.#types.chosen]);
    put("aggregate_ids", lines(this.#aggregates.value));
    put("event_ids", lines(this.#events.value));
    put("fields", this.#conditions.value);
    return Object.keys(filter).length || !this.#all.checked ? filter : { all: true };
  }

  #target() {
    const topics = Object.keys(this.#topics).length ? { topics: this.#topics } : {};
    if (this.#kind === "prefix") return { ...topics, prefix: this.#prefix.value.trim() };
    if (this.#kind === "topic") return { ...topics, topic: this.#topic.value.trim() };
    return topics;
  }

  #readRest() {
    const text = this.#rest.value.trim();
    let members = {};
    try {
      members = text ? JSON.parse(text) : {};
      if (typeof members !== "object" || members === null || Array.isArray(members)) throw new SyntaxError("not an object");
      setText(this.#restNote, "such as {\"consumers\": [\"orders-view\"], \"max_lag\": 10000}");
    } catch (error) {
      setText(this.#restNote, `no JSON object: ${error.message}`);
      members = null;
    }
    setAttribute(this.#rest, "aria-invalid", members === null ? "true" : null);
    return members;
  }

  // The body of the start, without whether it is a dry run.
  #body() {
    const body = { ...(this.#readRest() ?? {}), filter: this.#filter(), target: this.#target() };
    const source = Object.fromEntries(SOURCE.map((name) => [name, this.#inputs[name].value.trim()]).filter(([, value]) => value));
    if (Object.keys(source).length) body.source = source;
    for (const name of TEXTS) if (this.#inputs[name].value.trim()) body[name] = this.#inputs[name].value.trim();
    for (const name of NUMBERS) if (this.#inputs[name].value) body[name] = Number(this.#inputs[name].value);
    for (const name of Object.keys(CHOICES)) body[name] = this.#inputs[name].value;
    if (this.#kind === "live") body.to_original = true;
    return bodyOf(body);
  }

  // What is still missing before anything can be planned; "" if nothing is.
  #gap() {
    const filter = this.#filter();
    if (this.#start.isWrong || this.#end.isWrong) return "A time cannot be read.";
    if (Object.keys(filter).length === 0) return "Choose the events: a time, a type, a condition, or every event.";
    if (this.#kind === "prefix" && !this.#prefix.value.trim()) return "Type the prefix.";
    if (this.#kind === "topic" && !this.#topic.value.trim()) return "Type the topic.";
    if (this.#readRest() === null) return "The further members are no JSON object.";
    return "";
  }

  #changed() {
    const { all: _all, ...conditions } = this.#filter();
    this.#all.disabled = Object.keys(conditions).length > 0;
    this.#prefix.closest(".field").hidden = this.#kind !== "prefix";
    this.#topic.closest(".field").hidden = this.#kind !== "topic";
    const gap = this.#gap();
    this.#plan.ask(gap ? null : this.#body(), gap);
  }

  // Whether it may be started now; and if not, why not.
  #judge() {
    const { plan, refusal } = this.#plan;
    const live = this.#liveTopic();
    const isNamed = live === null || this.#liveName.value.trim() === live;
    setHidden(this.#liveBox, live === null || !plan, this.heading);
    if (live !== null) setText(this.#liveWhy, live);
    const mayStart = plan !== null && state.mayOperate && isNamed;
    setAttribute(this.#go, "aria-disabled", mayStart ? null : "true");
    setAttribute(this.#dryRun, "aria-disabled", state.mayOperate && (plan !== null || refusal !== null) ? null : "true");
    const reason = !plan ? "" : isNamed ? "" : `Live consumers read ${live}: type its name to start.`;
    setText(this.#why, reason);
    setText(this.#go, live === null ? "Start" : "Start to LIVE topics");
  }

  // The live topic that gets most events; null if none gets any.
  #liveTopic() {
    const { plan } = this.#plan;
    if (this.#kind !== "live" && !plan?.live_topics.length) return null;
    const topics = [...(plan?.live_topics ?? [])].sort((a, b) => (plan.by_topic[b] ?? 0) - (plan.by_topic[a] ?? 0));
    return topics[0] ?? Object.keys(plan?.partitions ?? {}).sort()[0] ?? null;
  }

  async #send(isDry) {
    const button = isDry ? this.#dryRun : this.#go;
    if (button.getAttribute("aria-disabled") === "true") return;
    const body = isDry ? { ...this.#body(), dry_run: true } : this.#body();
    if (isDry) for (const name of ["consumers", "max_lag"]) delete body[name];
    setAttribute(button, "aria-disabled", "true");
    const answer = await give("replays", { method: "POST", body });
    if (answer) document.dispatchEvent(new CustomEvent("console-go", { detail: replayHref(answer.replay_id) }));
    else this.#judge();
  }
}

customElements.define("start-view", StartView);
export { StartView };
