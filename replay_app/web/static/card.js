// A replay that has not ended, as a card: where it is, how fast, what limits it, and what can be done.

import { Buttons } from "./commands.js";
import { Sparkline } from "./charts.js";
import { Course } from "./course.js";
import { Facts, h, setAttribute, setHidden, setText } from "./dom.js";
import { count, filterOf, isEnded, matchedOf, pace, positionOf, readOf, roughly, targetOf, titleOf, tookSeconds, UNKNOWN, words } from "./format.js";
import { limitOf, timeLeft } from "./speed.js";
import { state } from "./state.js";

export const replayHref = (id) => new URL(`replays/${encodeURIComponent(id)}`, new URL("../", import.meta.url)).href;

// The state as a word with a colour, and what everybody must see of a replay: DRY, or LIVE.
export class Badges {
  #state = h("span", { class: "state" });
  #dry = h("span", { class: "badge dry" }, "DRY");
  #target = h("span", { class: "target" });
  parts = [this.#state, this.#dry, this.#target];

  show(session) {
    setText(this.#state, words(session.state));
    setAttribute(this.#state, "data-state", session.state);
    const { text, isLive } = targetOf(session, state.workers);
    setHidden(this.#dry, !session.start.dry_run);
    setText(this.#target, text);
    setAttribute(this.#target, "class", isLive ? "target badge live" : "target");
  }
}

// How far a replay is: the bar, the counts, and the position in the events' time.
export class Progress {
  #bar = h("progress", { max: "100" });
  #counts = h("b");
  #position = h("span", { class: "quiet" });
  #left = h("span", { class: "left" });
  element = h("div", { class: "progress" }, this.#bar, h("p", {}, this.#counts, " ", this.#position, this.#left));

  show(session, left) {
    const { percent } = session;
    setAttribute(this.#bar, "aria-label", `Progress of ${titleOf(session)}`);
    setAttribute(this.#bar, "data-state", session.state);
    this.#bar.value = percent ?? 0; // without a value the bar would move all the time
    setAttribute(this.#bar, "aria-valuetext", percent === null ? "unknown" : `${percent} %`);
    const share = percent === null ? "" : ` · ${percent.toFixed(1)} %`;
    const of = matchedOf(session) === UNKNOWN ? "read, of an unknown number" : `of ${matchedOf(session)}`;
    setText(this.#counts, `${count(readOf(session))} ${of}${share}`);
    setText(this.#position, isEnded(session) ? "" : positionOf(session));
    setText(this.#left, left);
  }
}

export class Card {
  #badges = new Badges();
  #progress = new Progress();
  #spark = new Sparkline();
  #facts = new Facts();
  #link = h("a");
  #id = h("span", { class: "id" });
  #why = h("p", { class: "why" });
  #notes = h("p", { class: "notes" });
  #buttons = new Buttons(this.#link);
  #chart = h("div", { class: "spark-box" }, this.#spark.element);

  constructor(session) {
    this.id = session.replay_id;
    this.course = new Course(this.id, () => this.show(state.sessions.get(this.id) ?? session));
    const title = h("h2", {}, this.#link, " ", this.#id);
    const head = h("div", { class: "card-head" }, this.#badges.parts[0], title, ...this.#badges.parts.slice(1), this.#buttons.element);
    const body = h("div", { class: "card-body" }, h("div", {}, this.#progress.element, this.#facts.element), this.#chart);
    this.element = h("article", { class: "card" }, head, this.#why, body, this.#notes);
    setAttribute(this.#link, "href", replayHref(this.id));
  }

  show(session) {
    setAttribute(this.element, "data-state", session.state);
    setAttribute(this.element, "aria-label", titleOf(session));
    setText(this.#link, titleOf(session));
    setText(this.#id, session.start.name ? session.replay_id : "");
    this.#badges.show(session);
    this.#buttons.show(session);
    const isFailed = session.state === "failed";
    setText(this.#why, isFailed ? session.error ?? "it does not say why" : "");
    setAttribute(this.#why, "title", this.#why.textContent || null);
    if (session.plan) this.course.refresh(session);
    const steps = this.course.steps(session);
    this.#progress.show(session, left(timeLeft(session, steps)));
    const isMoving = ["running", "pausing"].includes(session.state);
    const speeds = this.course.speeds(session);
    setHidden(this.#chart, speeds.length < 2 || !readOf(session));
    this.#spark.show(speeds, session.rate);
    setHidden(this.#progress.element, !readOf(session));
    const cap = session.rate === null ? "" : ` of at most ${pace(session.rate)}`;
    const limit = isEnded(session) || isFailed ? "" : limitOf(session, steps);
    this.#facts.show([
      ["Events/s", isMoving ? `${pace(session.events_per_second)}${cap}` : null],
      [isMoving ? "Limited by" : "Waits for", limit ? limit : isMoving ? UNKNOWN : null],
      ["For", session.started_at && !isEnded(session) && !isFailed ? roughly(tookSeconds(session)) : null],
      ["By", session.start.requested_by ?? null],
      ["Events", filterOf(session.start)],
    ]);
    setText(this.#notes, isEnded(session) ? "" : session.warnings.join(" · "));
    setAttribute(this.#notes, "title", this.#notes.textContent || null);
  }
}

const left = (text) => (/^(about|at most|\d)/.test(text) ? `${text} left` : text);
