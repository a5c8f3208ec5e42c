// The plan of a start that is being written: asked for again after each change.

import { ask } from "./api.js";
import { sampleOf } from "./commands.js";
import { copyButton, Grid, h, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { count, plural, UNKNOWN } from "./format.js";
import { topicsCommand } from "./shell.js";

const TYPING_MS = 600;
const TIMEOUT_MS = 60000;
const MISSING = /missing destination topics: (.*?);/s;
const GROUP_STATES = { unseen: "not seen yet", empty: "no members", active: "active" };

export class PlanPane {
  plan = null; // the plan of the body that was given last; null while it is not known
  refusal = null; // why that body cannot be started
  #body = null;
  #timer = null;
  #abort = null;
  #headline = h("p", { class: "matched" });
  #note = h("p", { class: "quiet" });
  #problem = h("p", { class: "notice", hidden: true });
  #create = h("pre", { tabindex: "0", "aria-label": "The command that creates the missing topics" });
  #missing = h("div", { hidden: true }, h("p", {}, "This creates them, like the original topics:"), this.#create, copyButton("Copy the command", () => this.#create.textContent));
  #warnings = h("ul", { class: "warnings", hidden: true });
  #topics = new Grid("Topics that get events", ["Topic", { text: "Events", number: true }, { text: "Partitions", number: true }, "Note"]);
  #types = new Grid("Types that are replayed", ["Type", { text: "Events", number: true }]);
  #groups = new Grid("Consumer groups that will get the events", ["Group", "State", { text: "Lag", number: true }, "Topics"]);
  #noGroups = h("p", { class: "quiet" });
  #samples = h("div", { class: "samples" });
  #found = h("div", { hidden: true },
    h("h3", {}, "Topics"), this.#topics.element,
    h("h3", {}, "Groups that will get the events"), this.#groups.element, this.#noGroups,
    h("h3", {}, "Types"), this.#types.element,
    h("h3", {}, "Sample records"), this.#samples);

  constructor(onChange) {
    this.onChange = onChange;
    this.head = h("div", { class: "plan" }, this.#headline, this.#note, this.#problem, this.#missing, this.#warnings);
    this.element = h("div", { class: "plan" }, this.#found);
  }

  // Plan a body soon; null says that there is nothing to plan yet, and `why`.
  ask(body, why = "") {
    const text = JSON.stringify(body);
    if (text === this.#body && body) return;
    this.#body = text;
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.plan = null;
    this.refusal = null;
    if (!body) {
      this.#idle(why);
      return;
    }
    setAttribute(this.element, "aria-busy", "true");
    setText(this.#note, "planning …");
    this.#timer = setTimeout(() => this.#ask(body), TYPING_MS);
    this.onChange();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
  }

  #idle(why) {
    setAttribute(this.element, "aria-busy", null);
    setText(this.#headline, "");
    setText(this.#note, why);
    for (const part of [this.#problem, this.#missing, this.#warnings, this.#found]) setHidden(part, true);
    this.onChange();
  }

  async #ask(body) {
    const abort = (this.#abort = new AbortController());
    let shown = null;
    try {
      shown = this.plan = await plan(body, abort.signal);
    } catch (error) {
      if (abort.signal.aborted) return;
      this.refusal = error.message;
      shown = await this.#withoutTopics(body, error.message, abort.signal);
      if (abort.signal.aborted) return;
    }
    setAttribute(this.element, "aria-busy", null);
    this.#show(shown);
    this.onChange();
  }

  // Where topics are missing, a plan for the original topics still tells how many events there are.
  async #withoutTopics(body, refusal, signal) {
    const [, names] = MISSING.exec(refusal) ?? [];
    setHidden(this.#missing, !names);
    if (!names) return null;
    setText(this.#create, topicsCommand(body));
    const prefix = body.target?.prefix;
    if (!prefix) return null;
    try {
      const found = await plan({ ...body, target: {}, dry_run: true, consumers: undefined, max_lag: undefined }, signal);
      const prefixed = (counts) => Object.fromEntries(Object.entries(counts).map(([name, value]) => [prefix + name, value]));
      const exists = ([name]) => !names.includes(`'${name}'`);
      const partitions = Object.fromEntries(Object.entries(prefixed(found.partitions)).filter(exists));
      return { ...found, by_topic: prefixed(found.by_topic), partitions, live_topics: [], samples: [] };
    } catch {
      return null; // the original topics are missing too
    }
  }

  #show(plan) {
    setText(this.#note, "");
    if (this.refusal === null) setHidden(this.#missing, true);
    setHidden(this.#problem, this.refusal === null);
    setText(this.#problem, this.refusal === null ? "" : `This cannot be started: ${this.refusal}`);
    setHidden(this.#found, !plan);
    setText(this.#headline, plan ? headline(plan) : "");
    const warnings = plan?.warnings ?? [];
    setHidden(this.#warnings, warnings.length === 0);
    keyed(this.#warnings, warnings, (text) => text, () => {
      const element = h("li");
      return { element, show: (text) => setText(element, text) };
    });
    if (!plan) return;
    const live = new Set(plan.live_topics);
    const topics = [...new Set([...Object.keys(plan.by_topic), ...Object.keys(plan.partitions)])].sort();
    this.#topics.show(topics.map((name) => [
      name,
      count(plan.by_topic[name]),
      count(plan.partitions[name]),
      live.has(name) ? { text: "LIVE", mark: "badge live" } : plan.partitions[name] === undefined ? "missing" : "",
    ]));
    this.#types.show(Object.entries(plan.by_type).sort(([, a], [, b]) => b - a).map(([name, number]) => [name, count(number)]));
    const groups = Object.entries(plan.consumers ?? {});
    setHidden(this.#groups.element, groups.length === 0);
    setText(this.#noGroups, groups.length ? "" : plan.consumers ? "No group reads these topics." : "Unknown.");
    this.#groups.show(groups.map(([name, one]) => [name, GROUP_STATES[one.state], count(one.lag), one.topics.join(", ")]));
    this.#samples.replaceChildren(...(plan.samples.length ? plan.samples.map(sampleOf) : [h("p", { class: "quiet" }, "No event matches.")]));
  }
}

const plan = (body, signal) => ask("plans", { method: "POST", body, signal, timeout: TIMEOUT_MS });

function headline({ matched, by_topic: topics, partitions }) {
  const number = Math.max(Object.keys(topics).length, Object.keys(partitions).length);
  const where = number ? `, to ${plural(number, "topic")}` : "";
  return matched === null ? `Events are not counted${where || ` ${UNKNOWN}`}` : `${plural(matched, "event")}${where}`;
}
