// What people do to a replay: buttons for the commands that are allowed now, and what comes of them.

import { ApiError, ask, replayPath } from "./api.js";
import { askNumber, confirmed, showDialog } from "./dialogs.js";
import { copyButton, h, setHidden } from "./dom.js";
import { failuresOf, titleOf } from "./format.js";
import { eventCommand } from "./shell.js";
import { state } from "./state.js";

const LABELS = { pause: "Pause", resume: "Resume", step: "Step…", retry: "Retry", release: "Release", cancel: "Cancel…" };
const MAX_STEP = 1000000;
const SHORT_ID = 12;

let say = () => {};

// Tell this module where messages go.
export function messagesGoTo(listener) {
  say = listener;
}

// Give a command; say what went wrong. Returns the answer, or null.
export async function give(path, options) {
  say("");
  try {
    return await ask(path, options);
  } catch (error) {
    if (!(error instanceof ApiError)) say("The worker does not answer. The command may have arrived: look before you repeat it.");
    else if (error.status === 401) say("The worker does not know this token.");
    else say(error.message);
    return null;
  }
}

const post = (id, verb, body = {}) => give(replayPath(id, `/${verb}`), { method: "POST", body });

async function run(session, verb) {
  const { replay_id: id, counters } = session;
  if (verb === "cancel") {
    const text = `${titleOf(session)} cannot go on once it is cancelled. What is published stays published.`;
    if (!(await confirmed("Cancel this replay?", text, "Cancel the replay", "Keep it"))) return;
  }
  if (verb === "step") {
    const events = await askNumber("Publish some more events", "Events, then pause again:", 1, "Step", MAX_STEP);
    if (events !== null) await post(id, verb, { events, published: counters.published });
    return;
  }
  await post(id, verb);
}

// The event that has stopped a failed replay. Only the error names the event, quoted as Python does.
export function failedEvent({ state: name, error }) {
  const found = name === "failed" ? /\bevent ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"): (.*)$/s.exec(error ?? "") : null;
  return found && { event_id: unquoted(found[1]), reason: found[2] };
}

const unquoted = (text) => text.slice(1, -1).replaceAll(/\\(['"\\])/g, "$1");

// The buttons of one replay. `home` is where the focus goes when a button vanishes.
export class Buttons {
  #session;
  #buttons = {};

  constructor(home) {
    this.home = home;
    this.element = h("div", { class: "buttons" });
    for (const [verb, label] of Object.entries(LABELS)) {
      this.#add(verb, label, verb === "cancel" ? "danger" : null, () => run(this.#session, verb));
      if (verb !== "retry") continue;
      this.#add("skip", "Retry and skip this event", null, () =>
        post(this.#session.replay_id, "retry", { skip_events: [failedEvent(this.#session).event_id] }));
      this.#add("event", "Show event", null, () => showFailure(this.#session, failedEvent(this.#session)));
    }
  }

  #add(name, label, className, action) {
    const button = h("button", { type: "button", class: className }, label);
    button.addEventListener("click", async () => {
      button.setAttribute("aria-disabled", "true"); // not disabled: that would drop the focus
      try {
        await action();
      } finally {
        button.removeAttribute("aria-disabled");
      }
    });
    this.#buttons[name] = button;
    this.element.append(button);
  }

  show(session) {
    this.#session = session;
    const verbs = state.mayOperate ? session.verbs : [];
    const failed = failedEvent(session);
    // Where a topic is missing, the event is good: it must not be skipped.
    const shown = { skip: verbs.includes("retry") && failed?.reason.includes("skip_events"), event: failed };
    for (const [name, button] of Object.entries(this.#buttons)) {
      setHidden(button, !(name in shown ? shown[name] : verbs.includes(name)), this.home);
      button.setAttribute("aria-label", `${button.textContent.replace("…", "")}: ${titleOf(session)}`);
    }
  }
}

// What is known of an event that has failed: the reason, the event as a record, and where its document is.
export async function showFailure(session, failure) {
  const command = eventCommand(failure.event_id, session.start.source);
  const record = h("div", { "aria-busy": "true" }, h("p", { class: "quiet" }, "asking the store …"));
  recordOf(session, failure.event_id).then((found) => {
    record.replaceChildren(...found);
    record.removeAttribute("aria-busy");
  });
  const stored = h("div", { "aria-busy": "true" }, h("p", { class: "quiet" }, "asking the store …"));
  documentOf(session, failure.event_id).then((found) => {
    stored.replaceChildren(found);
    stored.removeAttribute("aria-busy");
  });
  const others = failuresOf(session).length;
  const id = failure.event_id ?? "without an id";
  await showDialog(
    `Event ${id.length > 3 * SHORT_ID ? `${id.slice(0, SHORT_ID)}…` : id}`,
    h("dl", { class: "facts" }, h("div", {}, h("dt", {}, "Event id"), h("dd", {}, id)), h("div", {}, h("dt", {}, "Reason"), h("dd", {}, failure.reason))),
    h("h3", {}, "As a record"),
    record,
    h("h3", {}, "Its document"),
    stored,
    h("p", { class: "quiet" }, "This prints the event as a record, without Kafka and without a worker:"),
    h("pre", { tabindex: "0" }, command),
    copyButton("Copy the command", () => command),
    others > 1 ? h("p", { class: "quiet" }, `This replay lists ${others} failures; its page shows all of them.`) : null,
  );
}

async function recordOf(session, eventId) {
  const { source, target, transforms, redact } = session.start;
  const body = { filter: { event_ids: [eventId] }, source, target, transforms, redact, dry_run: true };
  try {
    const { samples } = await ask("plans", { method: "POST", body, timeout: 60000 });
    if (!samples.length) return [h("p", {}, "The store has no such event now.")];
    return [sampleOf(samples[0])];
  } catch (error) {
    return [h("p", {}, `It cannot be shown: ${error.message}`)];
  }
}

// The event as the store has it.
async function documentOf(session, eventId) {
  try {
    const path = replayPath(session.replay_id, `/document?event_id=${encodeURIComponent(eventId)}`);
    const { document: text, is_cut: isCut } = await ask(path, { timeout: 20000 });
    return h("pre", { class: "document", tabindex: "0", "aria-label": `Document of ${eventId}` }, isCut ? `${text}…` : pretty(text));
  } catch (error) {
    return h("p", {}, `It cannot be shown: ${error.message}`);
  }
}

// A sample record, or why the event gives none.
export function sampleOf(sample) {
  if (sample.error) return h("div", { class: "sample" }, h("p", { class: "bad" }, `${sample.event_id ?? "an event"}: ${sample.error}`));
  const headers = sample.headers.map(({ key, value }) => `${key}: ${value}`).join("\n");
  return h(
    "div",
    { class: "sample" },
    h("p", {}, h("b", {}, sample.topic), h("span", { class: "quiet" }, ` key ${sample.key || "—"}`)),
    h("pre", { tabindex: "0", "aria-label": `Value of ${sample.event_id ?? "the record"}` }, pretty(sample.value)),
    h("details", {}, h("summary", {}, `${sample.headers.length} headers`), h("pre", { tabindex: "0" }, headers)),
  );
}

export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // cut, or no JSON
  }
}
