// The console: finds the view for the address, and shows what all views share.

import { BASE, useToken } from "./api.js";
import { messagesGoTo } from "./commands.js";
import { setHidden, setText } from "./dom.js";
import { isEnded, titleOf, words } from "./format.js";
import "./history.js";
import "./now.js";
import "./replay.js";
import "./start.js";
import { state } from "./state.js";
import { asOf } from "./top-bar.js";

const $ = (id) => document.getElementById(id);
const REPLAY = /^replays\/([^/]+)$/;
const VIEWS = { "": "now-view", history: "history-view", new: "start-view" };
const TITLES = { "": "Now", history: "History", new: "New replay" };

// The part of an address behind the console's root; null for an address of somebody else.
function pathOf(url) {
  if (url.origin !== BASE.origin || !url.pathname.startsWith(BASE.pathname)) return null;
  const path = url.pathname.slice(BASE.pathname.length);
  return path in VIEWS || REPLAY.test(path) ? path : null;
}

let shown = null;

function show({ isFirst = false } = {}) {
  const path = pathOf(new URL(location.href)) ?? "";
  const main = $("view");
  document.querySelector("top-bar").arrive(path);
  if (shown === path && path !== "new") { // another query, or back to an earlier page of the list
    main.firstElementChild?.arrive?.();
    return;
  }
  shown = path;
  const [, id] = REPLAY.exec(path) ?? [];
  const view = document.createElement(id ? "replay-view" : VIEWS[path]);
  if (id) view.dataset.id = decoded(id);
  main.replaceChildren(view);
  document.title = `${TITLES[path] ?? view.dataset.id} · Replays`;
  if (isFirst) return;
  window.scrollTo(0, 0);
  view.heading.focus({ preventScroll: true });
}

function decoded(id) {
  try {
    return decodeURIComponent(id);
  } catch {
    return id; // no replay has such an id
  }
}

function go(address) {
  history.pushState({}, "", address);
  show();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const address = link.href.baseVal ?? link.href; // of SVG, or of HTML
  const url = new URL(address, location.href);
  if (link.hasAttribute("download") || url.hash || pathOf(url) === null) return;
  event.preventDefault();
  go(url.href);
});
window.addEventListener("popstate", () => show());
document.addEventListener("console-go", (event) => go(event.detail));

// Messages, the token, and what is out of date

messagesGoTo((text) => {
  setText($("message-text"), text);
  setHidden($("message"), !text);
});
$("message-close").addEventListener("click", () => {
  setHidden($("message"), true, document.querySelector("#view h1"));
});

let isAsked = false; // somebody wants to give another token
let loaded = null; // the version of the worker that this page came from

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  $("token").value = "";
  isAsked = false;
  state.reconnect();
});
document.addEventListener("console-token", () => {
  isAsked = true;
  showConnection();
  $("token").focus();
});

function showConnection() {
  const { kind, text } = state.connection;
  const wasHidden = $("token-form").hidden;
  setHidden($("token-form"), kind !== "token" && !isAsked, document.querySelector("#view h1"));
  setText($("token-label"), isAsked && kind !== "token" ? "Go on with another API token" : "This worker asks for its API token");
  if (kind === "token") {
    setText($("token-why"), text === "the worker asks for a token" ? "" : "The worker does not know this token.");
    if (wasHidden) $("token").focus();
  }
  setHidden($("stale"), !state.isStale || state.asOf === null);
  if (state.isStale) setText($("stale"), `${asOf()}: ${text}.`);
  const version = state.workers?.version;
  loaded ??= version ?? null;
  setHidden($("newer"), !loaded || !version || version === loaded);
}


// Announce changes of state only: nobody could follow numbers that change every second.
const states = new Map();
let isTold = false;

function announce() {
  const news = [];
  for (const [id, session] of state.sessions) {
    const before = states.get(id);
    if (isTold && before !== session.state && (before || !isEnded(session))) news.push(`${titleOf(session)} is ${words(session.state)}`);
    states.set(id, session.state);
  }
  isTold = isTold || state.asOf !== null;
  if (news.length) setText($("announcement"), news.slice(0, 5).join(". "));
}

state.watch(() => {
  showConnection();
  announce();
});
$("reload").addEventListener("click", () => location.reload());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && state.connection.kind === "away") state.wake();
});
// A relative address of the icon would be read anew at each address that the page takes.
const icon = document.querySelector('link[rel="icon"]');
icon.setAttribute("href", icon.href);
show({ isFirst: true });
state.keepConnected();
