// One replay: everything that is known of it, at an address of its own.

import { ApiError, ask, replayPath } from "./api.js";
import { Badges, Progress } from "./card.js";
import { ChainGraph } from "./chain.js";
import { LineChart } from "./charts.js";
import { Buttons, failedEvent, give, sampleOf, showFailure } from "./commands.js";
import { Course } from "./course.js";
import { copyButton, Facts, Grid, h, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { count, day, duration, failuresOf, filterOf, isEnded, matchedOf, pace, second, sum, timeCell, titleOf, tookSeconds, UNKNOWN, utc, words } from "./format.js";
import { bodyOf, cliOf, curlOf } from "./shell.js";
import { limitOf, timeLeft } from "./speed.js";
import { state } from "./state.js";

const HISTORY_MS = 2000;
const CHAIN_MS = 5000;
const PLAN_MS = 60000;
const GROUP_STATES = { unseen: "not seen yet", empty: "no members", active: "active" };
const percent = (share) => `${Math.round(100 * share)} %`;

const known = (value) => value !== null && value !== undefined;

function panel(title, ...content) {
  const id = `panel-${title.toLowerCase().replaceAll(/\W+/g, "-")}`;
  return h("section", { class: "panel", "aria-labelledby": id }, h("h2", { id }, title), ...content);
}

class ReplayView extends HTMLElement {
  #buttons;
  #link = h("a", { class: "button" }, "Run again as…");
  #badges = new Badges();
  #progress = new Progress();
  #why = h("p", { class: "why" });
  #warnings = h("ul", { class: "warnings" });
  #facts = new Facts();
  #missing = h("p", { class: "notice", role: "alert", hidden: true });
  #body = h("div", { class: "panels" });
  #rate = new RateForm();
  #parts = [];
  #session = null;

  constructor() {
    super();
    this.heading = h("h1", { tabindex: "-1" });
    this.#buttons = new Buttons(this.heading);
  }

  connectedCallback() {
    this.id = "replay";
    this.replayId = this.dataset.id;
    setText(this.heading, this.replayId);
    this.course = new Course(this.replayId, () => this.#show());
    const side = h("div", { class: "head-side" }, this.#buttons.element, this.#link);
    const head = h("div", { class: "replay-head" }, h("div", { class: "title" }, this.#badges.parts[0], this.heading, ...this.#badges.parts.slice(1)), side);
    this.#body.hidden = true;
    this.append(h("nav", { class: "trail", "aria-label": "Trail" }, h("a", { href: new URL("history", base()).href }, "History")), head, this.#missing, this.#body);
    const above = [new Summary(this.#progress, this.#why, this.#warnings, this.#facts, this.#rate), new Chain(), new Failures()];
    const left = [new Speeds(this.course), new Timeline(this.replayId), new Topics(), new Shards()];
    const right = [new Waits(this.course), new Types(), new Consumers(), new Receipt(), new Samples()];
    const below = [new Command()];
    const elements = (parts) => parts.map((part) => part.element);
    const column = (parts) => h("div", { class: "column" }, ...elements(parts));
    this.#parts = [...above, ...left, ...right, ...below];
    this.#body.append(...elements(above), column(left), column(right), ...elements(below));
    setAttribute(this.#link, "href", new URL(`new?again=${encodeURIComponent(this.replayId)}`, base()).href);
    this.stop = state.watch((ids) => this.#note(ids));
    this.timer = setInterval(() => this.#show(), 5000);
    this.#load();
    this.#show();
  }

  disconnectedCallback() {
    this.stop();
    clearInterval(this.timer);
  }

  #note(ids) {
    if (this.generation !== state.generation && !state.isStale) this.#load();
    if (ids.size === 0 || ids.has(this.replayId)) this.#show();
  }

  async #load() {
    this.generation = state.generation;
    try {
      await state.fetch(this.replayId);
      setHidden(this.#missing, true);
    } catch (error) {
      const isGone = error instanceof ApiError && error.status === 404;
      if (isGone) setText(this.#missing, `There is no replay ${this.replayId}. Perhaps it was forgotten: ended replays are kept for a time only.`);
      setHidden(this.#missing, !isGone || this.#session !== null);
    }
    this.#show();
  }

  #show() {
    const session = state.sessions.get(this.replayId) ?? this.#session;
    setHidden(this.#link, !state.mayOperate || !session, this.heading);
    setHidden(this.#buttons.element, !session, this.heading);
    if (!session) return;
    this.#session = session;
    setHidden(this.#missing, true);
    this.#body.hidden = false;
    setText(this.heading, titleOf(session));
    document.title = `${titleOf(session)}: ${words(session.state)} · Replays`;
    this.#badges.show(session);
    this.#buttons.show(session);
    if (session.plan) this.course.refresh(session);
    const steps = this.course.steps(session);
    for (const part of this.#parts) part.show(session, steps);
  }
}

const base = () => new URL("../", import.meta.url);

// The rate, which may be changed at any time. What somebody is typing is never overwritten.
class RateForm {
  #input = h("input", { type: "number", id: "rate", min: "0.001", step: "any", inputmode: "decimal", placeholder: "no limit" });
  #now = h("span", { class: "quiet" });
  element = h("form", { class: "rate" }, h("label", { for: "rate" }, "Rate, events/s"), this.#input, h("button", { type: "submit" }, "Set"), this.#now);
  #id = null;
  #shown = null;

  constructor() {
    this.element.addEventListener("submit", async (event) => {
      event.preventDefault();
      const rate = this.#input.value === "" ? null : Number(this.#input.value);
      if (await give(replayPath(this.#id), { method: "PATCH", body: { rate } })) setText(this.#now, rate === null ? "asked for no limit" : `asked for ${pace(rate)}`);
    });
  }

  show(session, home) {
    this.#id = session.replay_id;
    setHidden(this.element, !state.mayOperate || !session.verbs.includes("set-rate"), home);
    if (this.#shown === session.rate) return;
    if (document.activeElement !== this.#input) this.#input.value = session.rate ?? "";
    this.#shown = session.rate;
    setText(this.#now, "");
  }
}

class Summary {
  constructor(progress, why, warnings, facts, rate) {
    Object.assign(this, { progress, why, warnings, facts, rate });
    this.more = new Facts();
    this.element = panel("Course", progress.element, why, warnings, h("div", { class: "columns" }, facts.element, this.more.element), rate.element);
    this.element.classList.add("wide");
    this.element.setAttribute("tabindex", "-1");
  }

  show(session, steps) {
    const { counters, start, plan } = session;
    const number = (value) => count(plan ? value : null);
    const left = timeLeft(session, steps);
    this.progress.show(session, left);
    setText(this.why, session.state === "failed" ? session.error ?? "it does not say why" : "");
    showTexts(this.warnings, [...(session.stalled ? ["stalled: no progress"] : []), ...session.warnings]);
    this.rate.show(session, this.element);
    const isMoving = session.state === "running";
    this.facts.show([
      ["Matched", matchedOf(session)],
      ["Read", number(counters.read)],
      ["Published", number(counters.published)],
      ["Skipped", number(counters.skipped)],
      ["Dead-lettered", number(counters.dead_lettered)],
      ["Events/s", isMoving ? `${pace(session.events_per_second)}${session.rate === null ? "" : ` of at most ${pace(session.rate)}`}` : null],
      ["Limited by", isMoving ? limitOf(session, steps) || UNKNOWN : null],
      ["Waits for", isMoving || isEnded(session) ? null : session.reason ?? session.hold],
    ]);
    this.more.show([
      ["Id", session.replay_id],
      ["Events", filterOf(start)],
      ["From", sourceOf(session)],
      ["Order", start.ordering === "global" ? "by time" : "by time within each aggregate"],
      ["On error", session.retry_on_error ?? start.on_error],
      ["Asked by", start.requested_by ?? UNKNOWN],
      ["Reason", start.reason],
      ["Created", timeCell(session.created_at)],
      ["Started", session.started_at ? timeCell(session.started_at) : null],
      ["Ended", session.ended_at ? timeCell(session.ended_at) : null],
      ["Took", session.started_at || isEnded(session) ? duration(tookSeconds(session)) : null],
      ["Attempt", session.attempt > 1 ? count(session.attempt) : null],
      ["Skips, if they fail", session.skipped_events.length ? session.skipped_events.join(", ") : null],
    ]);
  }
}

function sourceOf({ plan, start }) {
  const planned = plan?.source ?? {};
  const name = [planned.REPLAY_MONGO_DATABASE, planned.REPLAY_MONGO_COLLECTION].filter(Boolean).join(".");
  const mapping = start.source?.mapping && `mapping ${start.source.mapping}`;
  return [name, mapping].filter(Boolean).join(", ") || null;
}

function showTexts(list, texts) {
  setHidden(list, texts.length === 0);
  keyed(list, texts, (text) => text, () => {
    const element = h("li");
    return { element, show: (text) => setText(element, text) };
  });
}

class Speeds {
  #chart = new LineChart("Events a second", [{ name: "speed", label: "read" }], (value, say = pace) => say(value));

  constructor(course) {
    this.course = course;
    this.element = panel("Speed", this.#chart.element);
  }

  show(session) {
    this.#chart.show(this.course.speeds(session), { cap: session.rate });
  }
}

class Waits {
  #chart = new LineChart("Time spent waiting", [{ name: "store", label: "store" }, { name: "encoder", label: "encoder" }, { name: "broker", label: "broker" }], percent);

  constructor(course) {
    this.course = course;
    this.element = panel("Waiting on", this.#chart.element);
  }

  show(session, steps) {
    this.#chart.show(steps, { least: 0.1 });
  }
}

class Timeline {
  #list = h("ol", { class: "timeline" });
  #dropped = h("p", { class: "quiet", hidden: true });
  #asked = 0;
  #revision = null;

  constructor(id) {
    this.id = id;
    this.element = panel("Timeline", this.#list, this.#dropped);
  }

  async show(session) {
    if (this.#revision === session.revision || Date.now() - this.#asked < HISTORY_MS) return;
    this.#asked = Date.now();
    const { revision } = session;
    try {
      const { changes, dropped } = await ask(replayPath(this.id, "/history"));
      this.#revision = revision;
      keyed(this.#list, changes.map((change, number) => ({ change, number })), (one) => one.number, makeChange);
      setHidden(this.#dropped, dropped === 0);
      setText(this.#dropped, `${count(dropped)} changes in between are not kept.`);
    } catch {
      // The connection says that the worker is away; the next state asks again.
    }
  }
}

function makeChange() {
  const time = h("time");
  const what = h("b");
  const badge = h("span", { class: "state" });
  const who = h("span", { class: "quiet" });
  const detail = h("span", { class: "detail" });
  const element = h("li", {}, time, h("p", {}, what, " ", badge, " ", who, detail));
  return {
    element,
    show({ change }) {
      setText(time, second(change.at).replace(`${day(new Date().toISOString())} `, ""));
      setAttribute(time, "datetime", change.at);
      setAttribute(time, "title", utc(change.at));
      setText(what, change.command ?? "");
      setText(badge, words(change.state));
      setAttribute(badge, "data-state", change.state);
      setText(who, change.by ? `by ${change.by}` : change.command ? "" : "by itself");
      const rate = change.command === "set-rate" ? `rate ${change.rate === null ? "unlimited" : pace(change.rate)}` : "";
      setText(detail, [rate, change.detail].filter(Boolean).join(": "));
    },
  };
}

class Chain {
  #graph = new ChainGraph();
  #grid = new Grid("Replays of the chain", ["Replay", "State", "Waits for"]);
  #asked = 0;
  #ids = new Set();

  constructor() {
    this.element = panel("Chain", this.#graph.element, h("details", {}, h("summary", {}, "The chain as a table"), this.#grid.element));
    this.element.classList.add("wide");
    this.element.hidden = true;
  }

  async show(session) {
    const { chain, after = [] } = session.start;
    this.element.hidden = !chain && !after.length;
    if (this.element.hidden) return;
    this.#draw(session);
    if (!chain || Date.now() - this.#asked < CHAIN_MS) return;
    this.#asked = Date.now();
    try {
      const { replays } = await ask(`replays?${new URLSearchParams({ chain, limit: 1000 })}`);
      for (const one of replays) state.put(one);
      this.#ids = new Set(replays.map((one) => one.replay_id));
      this.#draw(session);
    } catch {
      // As above.
    }
  }

  #draw(session) {
    const ids = new Set([...this.#ids, session.replay_id, ...(session.start.after ?? []).map((one) => one.replay ?? one)]);
    const sessions = [...ids].map((id) => state.sessions.get(id) ?? (id === session.replay_id ? session : null)).filter(Boolean);
    this.#graph.show(sessions, session.replay_id);
    const waits = (one) => (one.start.after ?? []).map((parent) => parent.replay ?? parent).join(", ");
    this.#grid.show(sessions.map((one) => [{ text: titleOf(one), href: new URL(`replays/${encodeURIComponent(one.replay_id)}`, base()).href }, words(one.state), waits(one)]));
  }
}

function doneOf(done, planned) {
  const names = [...new Set([...Object.keys(planned ?? {}), ...Object.keys(done)])];
  return names.sort().map((name) => [name, count(done[name] ?? 0), count(planned?.[name])]);
}

class Types {
  #grid = new Grid("Events by type", ["Type", { text: "Done", number: true }, { text: "Planned", number: true }]);
  element = panel("Events by type", this.#grid.element);

  show(session) {
    this.#grid.show(doneOf(sum(session, "by_type"), session.plan?.by_type));
  }
}

class Topics {
  #grid = new Grid("Topics", ["Topic", { text: "Done", number: true }, { text: "Planned", number: true }, { text: "Partitions", number: true }]);
  #offsets = new Grid("Offsets written", ["Topic", { text: "Partition", number: true }, { text: "First", number: true }, { text: "Last", number: true }]);
  #live = new Grid("Hand-over to live", ["Topic", { text: "Partition", number: true }, { text: "Offset", number: true }]);
  #offsetsPart = h("details", {}, h("summary", {}, "Partitions and offsets"), this.#offsets.element);
  #livePart = h("details", {}, h("summary", {}, "Hand-over to live: where consumers read on"), this.#live.element);
  element = panel("Topics", this.#grid.element, this.#offsetsPart, this.#livePart);

  show(session) {
    const { plan, offsets, handover } = session;
    this.#grid.show(doneOf(sum(session, "by_topic"), plan?.by_topic).map((row) => [...row, count(plan?.partitions[row[0]])]));
    const ranges = Object.entries(offsets).sort().flatMap(([topic, partitions]) =>
      Object.entries(partitions).map(([number, [first, last]]) => [topic, number, count(first), count(last)]));
    setHidden(this.#offsetsPart, ranges.length === 0);
    this.#offsets.show(ranges);
    const live = Object.entries(handover ?? {}).sort().flatMap(([topic, partitions]) =>
      Object.entries(partitions ?? {}).map(([number, offset]) => [topic, number, count(offset)]));
    setHidden(this.#livePart, live.length === 0);
    this.#live.show(live);
  }
}

class Consumers {
  #grid = new Grid("Consumer groups", ["Group", "State", { text: "Lag", number: true }, "Has read all since", "Looked at"]);
  #none = h("p", { class: "quiet" }, "The command names no consumer groups: their lag is not watched.");
  element = panel("Consumer lag", this.#grid.element, this.#none);

  show(session) {
    const groups = session.start.consumers ?? [];
    setHidden(this.#grid.element, groups.length === 0);
    setHidden(this.#none, groups.length > 0);
    this.#grid.show(groups.map((group) => {
      const found = session.consumption?.[group];
      if (!found) return [group, "not looked at yet", UNKNOWN, UNKNOWN, UNKNOWN];
      const name = GROUP_STATES[found.state];
      return [group, found.reason ? `${name}: ${found.reason}` : name, count(found.lag), timeCell(found.consumed_at), timeCell(found.checked_at)];
    }));
  }
}

class Shards {
  #grid = new Grid("Shards", [{ text: "Shard", number: true }, "State", "Owner", { text: "Read", number: true }, { text: "Failed", number: true }, "Waits for", "Heard"]);
  element = panel("Shards", this.#grid.element);

  show(session) {
    this.#grid.show(session.shards.map((shard, number) => [
      number,
      shard.progress.state,
      shard.worker ?? UNKNOWN,
      count(shard.progress.counters.read),
      count(shard.progress.failed),
      shard.progress.reason ?? "",
      timeCell(shard.heard_at),
    ]));
  }
}

// The failures that the shards list, and the event that has stopped the replay.
function allFailures(session) {
  const stopped = failedEvent(session);
  const listed = failuresOf(session);
  return stopped && !listed.some((one) => one.event_id === stopped.event_id) ? [stopped, ...listed] : listed;
}

class Failures {
  #rows = h("tbody");
  #head = h("h2", { id: "failures" }, "Failures");
  #more = h("p", { class: "quiet" });
  #most = 100;

  constructor() {
    const exported = h("button", { type: "button", class: "small" }, "Export as JSON lines");
    exported.addEventListener("click", () => this.#export());
    const heads = h("tr", {}, h("th", { scope: "col" }, "Event"), h("th", { scope: "col" }, "Reason"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Look")));
    const table = h("table", {}, h("caption", { class: "unseen" }, "Failed events"), h("thead", {}, heads), this.#rows);
    const frame = h("div", { class: "frame", tabindex: "0", role: "group", "aria-label": "Failed events" }, table);
    this.element = h("section", { class: "panel wide", "aria-labelledby": "failures", hidden: true }, h("div", { class: "panel-head" }, this.#head, exported), frame, this.#more);
  }

  show(session) {
    this.session = session;
    const failures = allFailures(session);
    setHidden(this.element, failures.length === 0);
    const total = Math.max(failures.length, session.shards.reduce((most, shard) => most + shard.progress.failed, 0));
    setText(this.#more, total > failures.length || failures.length > this.#most ? `${count(Math.min(this.#most, failures.length))} of ${count(total)} failures are shown; ${count(failures.length)} are listed and in the export.` : "");
    const shown = failures.slice(0, this.#most).map((failure, number) => ({ failure, number }));
    keyed(this.#rows, shown, (one) => one.number, () => this.#row());
  }

  #row() {
    const [id, reason] = [h("td", { class: "mono" }), h("td")];
    const button = h("button", { type: "button", class: "small" }, "Show event");
    let failure = null;
    button.addEventListener("click", () => showFailure(this.session, failure));
    return {
      element: h("tr", {}, id, reason, h("td", {}, button)),
      show: (one) => {
        failure = one.failure;
        setText(id, failure.event_id ?? UNKNOWN);
        setText(reason, failure.reason);
        setHidden(button, failure.event_id === null);
        setAttribute(button, "aria-label", `Show event ${failure.event_id}`);
      },
    };
  }

  #export() {
    const { replay_id: id } = this.session;
    const lines = allFailures(this.session).map((failure) => `${JSON.stringify({ replay_id: id, ...failure })}\n`);
    const link = h("a", { download: `${id}-failures.jsonl` });
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

class Samples {
  #button = h("button", { type: "button", class: "small" }, "Show sample records");
  #records = h("div", { class: "samples", "aria-live": "polite" });
  element = panel("Sample records", h("p", { class: "quiet" }, "Some events of this replay's filter, as the records that they would be now."), this.#button, this.#records);

  constructor() {
    this.#button.addEventListener("click", () => this.#ask());
  }

  show(session) {
    this.session = session;
  }

  async #ask() {
    this.#records.replaceChildren(h("p", { class: "quiet" }, "asking the store …"));
    const body = { ...bodyOf(this.session.start), dry_run: true };
    for (const name of ["chain", "after", "consumers", "max_lag", "to_original"]) delete body[name];
    try {
      const { samples } = await ask("plans", { method: "POST", body, timeout: PLAN_MS });
      this.#records.replaceChildren(...(samples.length ? samples.map(sampleOf) : [h("p", {}, "No event matches now.")]));
    } catch (error) {
      this.#records.replaceChildren(h("p", { class: "bad" }, `There are no samples: ${error.message}`));
    }
  }
}

class Receipt {
  #facts = new Facts();
  element = panel("Receipt", this.#facts.element);

  show({ receipt, verification }) {
    setHidden(this.element, !receipt);
    if (!receipt) return;
    this.#facts.show([
      ["Published", count(receipt.counters.published)],
      ["Bytes", count(receipt.bytes)],
      ["Took", duration(receipt.seconds)],
      ["Visible since", timeCell(receipt.visible_at)],
      ["Stored behind", count(receipt.behind)],
      ["Dropped by transforms", receipt.dropped ? count(receipt.dropped) : null],
      ["Parked", receipt.parked ? count(receipt.parked) : null],
      ["Verified", verification ? `${words(verification.verdict.replaceAll("-", " "))}` : null],
    ]);
  }
}

class Command {
  #texts = { JSON: h("pre", { tabindex: "0" }), curl: h("pre", { tabindex: "0" }), "Command line": h("pre", { tabindex: "0" }) };
  #shown = null;

  constructor() {
    const parts = Object.entries(this.#texts).map(([name, pre]) => {
      pre.setAttribute("aria-label", `The command as ${name}`);
      return h("div", {}, h("div", { class: "panel-head" }, h("h3", {}, name), copyButton(`Copy ${name}`, () => pre.textContent)), pre);
    });
    const note = "curl and command line leave out the id and the chain: they start a new replay.";
    const [json, ...others] = parts;
    const columns = h("div", { class: "halves" }, json, h("div", { class: "column" }, ...others));
    this.element = panel("Command", h("p", { class: "quiet" }, note), columns);
    this.element.classList.add("wide");
  }

  show({ start }) {
    if (this.#shown === start.replay_id) return;
    this.#shown = start.replay_id;
    const { chain: _chain, after: _after, ...body } = bodyOf(start);
    const asked = known(start.requested_by) ? { requested_by: start.requested_by } : {};
    setText(this.#texts.JSON, JSON.stringify({ replay_id: start.replay_id, ...bodyOf(start), ...asked }, null, 2));
    setText(this.#texts.curl, curlOf(body));
    setText(this.#texts["Command line"], cliOf(body));
  }
}

customElements.define("replay-view", ReplayView);
export { ReplayView };
