// A chain as a graph: each replay stands to the right of the replays that it waits for.

import { h, setAttribute, svg } from "./dom.js";
import { titleOf, words } from "./format.js";
import { replayHref } from "./card.js";

const BOX = { width: 190, height: 44, gapX: 56, gapY: 14, pad: 6 };
const MOST_LETTERS = 25;

export const parentsOf = (session) => (session.start.after ?? []).map((one) => (typeof one === "string" ? { replay: one, consumed: false } : one));

// Levels of the replays: parents first. A replay of another chain has no box.
export function levelsOf(sessions) {
  const known = new Map(sessions.map((session) => [session.replay_id, session]));
  const levels = new Map();
  const level = (session, path) => {
    if (levels.has(session.replay_id)) return levels.get(session.replay_id);
    if (path.has(session.replay_id)) return 0; // a cycle cannot start, but must not stop the page
    const parents = parentsOf(session).map((one) => known.get(one.replay)).filter(Boolean);
    const deeper = new Set([...path, session.replay_id]);
    const found = parents.length ? 1 + Math.max(...parents.map((one) => level(one, deeper))) : 0;
    levels.set(session.replay_id, found);
    return found;
  };
  for (const session of sessions) level(session, new Set());
  return levels;
}

const cut = (text) => (text.length > MOST_LETTERS ? `${text.slice(0, MOST_LETTERS - 1)}…` : text);

export class ChainGraph {
  #scroll = h("div", { class: "chain-scroll", tabindex: "0", role: "region", "aria-label": "The chain as a graph" });
  #shown = "";
  element = this.#scroll;

  // `own` is the replay of the page.
  show(sessions, own) {
    const version = JSON.stringify(sessions.map((one) => [one.replay_id, one.state, one.percent]));
    if (version === this.#shown) return;
    this.#shown = version;
    const focused = this.#scroll.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.#scroll.replaceChildren(draw(sessions, own));
    if (focused) [...this.#scroll.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
  }
}

function draw(sessions, own) {
  const levels = levelsOf(sessions);
  const columns = [];
  for (const session of [...sessions].sort((a, b) => a.replay_id.localeCompare(b.replay_id))) {
    const number = levels.get(session.replay_id);
    (columns[number] ??= []).push(session);
  }
  const places = new Map();
  columns.forEach((column, x) => column.forEach((one, y) => places.set(one.replay_id, place(x, y))));
  const deepest = Math.max(...columns.map((column) => column.length));
  const width = columns.length * (BOX.width + BOX.gapX) - BOX.gapX + 2 * BOX.pad;
  const height = deepest * (BOX.height + BOX.gapY) - BOX.gapY + 2 * BOX.pad;
  const element = svg("svg", { class: "chain", viewBox: `0 0 ${width} ${height}`, width, height });
  for (const session of sessions) {
    for (const parent of parentsOf(session)) {
      if (places.has(parent.replay)) element.append(edge(places.get(parent.replay), places.get(session.replay_id), parent.consumed));
    }
  }
  for (const session of sessions) element.append(node(session, places.get(session.replay_id), session.replay_id === own));
  return element;
}

const place = (x, y) => ({ x: BOX.pad + x * (BOX.width + BOX.gapX), y: BOX.pad + y * (BOX.height + BOX.gapY) });

function edge(from, to, consumed) {
  const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
  const [x2, y2] = [to.x, to.y + BOX.height / 2];
  const middle = (x1 + x2) / 2;
  return svg("path", { class: consumed ? "edge consumed" : "edge", d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` });
}

function node(session, { x, y }, isOwn) {
  const short = session.start.chain && session.replay_id.startsWith(`${session.start.chain}.`) ? session.replay_id.slice(session.start.chain.length + 1) : titleOf(session);
  const percent = session.percent === null || session.state !== "running" ? "" : `, ${session.percent} %`;
  const parents = parentsOf(session).map((one) => one.replay + (one.consumed ? " (consumed)" : ""));
  const waits = parents.length ? `; after ${parents.join(", ")}` : "";
  const link = svg("a", { href: replayHref(session.replay_id), "aria-label": `${short}: ${words(session.state)}${percent}${waits}` });
  setAttribute(link, "aria-current", isOwn ? "page" : null);
  link.append(
    svg("rect", { x, y, width: BOX.width, height: BOX.height, rx: 6, "data-state": session.state }),
    svg("text", { x: x + 12, y: y + 18, class: "node-name" }, cut(short)),
    svg("text", { x: x + 12, y: y + 35, class: "node-state", "data-state": session.state }, words(session.state) + percent),
  );
  return link;
}
