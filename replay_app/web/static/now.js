// Now: a card for each replay that has not ended, the failed ones first.

import { Card } from "./card.js";
import { h, keyed, setHidden, setText } from "./dom.js";
import { count, isEnded, second, words } from "./format.js";
import { state } from "./state.js";

const MOST_FAILED = 20; // failed replays stay for weeks: they must not push the others out of sight
const MOST_OTHERS = 60;
const LINGER_MS = 20000; // so long an ended replay stays, so that people see how it ended
const MOST_REJECTIONS = 5;
const ORDER = ["failed", "running", "pausing", "cancelling", "planning", "pending", "waiting", "paused"];

class NowView extends HTMLElement {
  static title = "Now";
  #ended = new Map(); // replay_id -> when it was seen to end
  #invitation = h("p", {}, h("a", { href: new URL("../new", import.meta.url).href, class: "button" }, "New replay"), " or ", h("code", {}, "replay-app start"));
  #cards = h("div", { class: "cards" });
  #summary = h("p", { class: "quiet summary" });
  #empty = h("div", { class: "empty", hidden: true });
  #moreText = h("span");
  #more = h("p", { class: "quiet more", hidden: true }, this.#moreText, h("a", { href: new URL("../history?show=active&show=failed", import.meta.url).href }, "all of them in the history"));
  #rejections = h("ul");
  #refused = h("section", { class: "panel", hidden: true, "aria-labelledby": "refused" }, h("h2", { id: "refused" }, "Refused commands"), this.#rejections);

  connectedCallback() {
    const heading = h("h1", { tabindex: "-1" }, "Now");
    this.#empty.append(h("p", {}, "Nothing is under way."), this.#invitation);
    this.append(h("div", { class: "view-head" }, heading, this.#summary), this.#empty, this.#cards, this.#more, this.#refused);
    this.heading = heading;
    this.stop = state.watch((ids) => this.#note(ids));
    this.timer = setInterval(() => this.#show(), 5000);
    this.#show();
  }

  disconnectedCallback() {
    this.stop();
    clearInterval(this.timer);
  }

  #note(ids) {
    for (const id of ids) {
      const session = state.sessions.get(id);
      if (session && isEnded(session) && this.#known.has(id)) this.#ended.set(id, this.#ended.get(id) ?? Date.now());
    }
    this.#show();
  }

  #known = new Set();

  #listed() {
    const now = Date.now();
    for (const [id, at] of this.#ended) if (now - at > LINGER_MS) this.#ended.delete(id);
    const sessions = [...state.sessions.values()].filter((one) => !isEnded(one) || this.#ended.has(one.replay_id));
    const place = (one) => (ORDER.indexOf(one.state) + ORDER.length) % ORDER.length + (isEnded(one) ? ORDER.length : 0);
    return sessions.sort((a, b) => place(a) - place(b) || b.created_at.localeCompare(a.created_at));
  }

  #show() {
    const listed = this.#listed();
    for (const one of listed) if (!isEnded(one)) this.#known.add(one.replay_id);
    const failed = listed.filter((one) => one.state === "failed");
    const others = listed.filter((one) => one.state !== "failed");
    const shown = [...failed.slice(0, MOST_FAILED), ...others.slice(0, MOST_OTHERS)];
    keyed(this.#cards, shown, (one) => one.replay_id, (one) => new Card(one), this.heading);
    setHidden(this.#more, listed.length === shown.length);
    setText(this.#moreText, `and ${count(listed.length - shown.length)} more: `);
    setHidden(this.#empty, listed.length > 0 || state.asOf === null || state.isStale);
    setHidden(this.#invitation, !state.mayOperate, this.heading);
    setText(this.#summary, summaryOf(listed.filter((one) => !isEnded(one))));
    const refused = state.rejections.slice(0, MOST_REJECTIONS);
    setHidden(this.#refused, refused.length === 0);
    keyed(this.#rejections, refused, (one) => `${one.replay_id} ${one.partition}-${one.offset}`, makeRejection);
  }
}

function makeRejection() {
  const element = h("li");
  return {
    element,
    show: (one) => setText(element, `${second(one.at)}: ${one.command ?? "command"} for ${one.replay_id}: ${one.rejected}`),
  };
}

function summaryOf(sessions) {
  const states = new Map();
  for (const { state: name } of sessions) states.set(name, (states.get(name) ?? 0) + 1);
  const speed = sessions.reduce((total, one) => total + (one.state === "running" ? one.events_per_second ?? 0 : 0), 0);
  const parts = ORDER.filter((name) => states.has(name)).map((name) => `${count(states.get(name))} ${words(name)}`);
  if (speed) parts.push(`${count(Math.round(speed))} events/s together`);
  return parts.join(" · ");
}

customElements.define("now-view", NowView);
export { NowView };
