// The status page: asks for /replays every second and shows the answer. Data is inserted as text
// only. Rows change in place, so that the focus and the reading position stay.
"use strict";

const POLL_MS = 1000;
const TIMEOUT_MS = 5000;
const LIMIT = 100;
const UNKNOWN = "—";
const FINISHED = new Set(["completed", "completed_with_errors", "cancelled"]);
const BUTTONS = ["pause", "resume", "retry", "release", "cancel"]; // the verb set-rate has no button

const rows = new Map(); // replay_id -> {row, cells}
let replays = new Map(); // replay_id -> session, newest first
let states = null; // replay_id -> state, as shown last; null before the first answer
let openId = null;
let token = sessionStorage.getItem("token");

const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// What the page says

const count = (value) => (value === null || value === undefined ? UNKNOWN : value.toLocaleString("en"));
const words = (state) => state.replaceAll("_", " ");
const time = (value) => (value ? new Date(value).toISOString().slice(0, 19).replace("T", " ") : UNKNOWN);
// How far in the events' time a replay is: "at 2026-01-09 14:02 of 2026-01-21 00:00".
const place = (position) =>
  position ? `at ${time(position.time).slice(0, 16)} of ${time(position.end).slice(0, 16)}` : "";
// Where the events are: the collection, and the mapping if the command names one.
function source({ plan, start }) {
  const planned = plan?.source ?? {};
  const name = [planned.REPLAY_MONGO_DATABASE, planned.REPLAY_MONGO_COLLECTION].filter(Boolean).join(".");
  const mapping = start.source?.mapping && `mapping ${start.source.mapping}`;
  return [name, mapping].filter(Boolean).join(", ") || UNKNOWN;
}

const isCounting = ({ matched, plan, state }) =>
  matched === null && plan?.counted === "running" && ["waiting", "running"].includes(state);
const matched = (session) => (isCounting(session) ? "counting" : count(session.matched));

function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600).toLocaleString("en")} h ${Math.floor((whole % 3600) / 60)} min`;
}

function pace(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function notesOf(session, warnings = session.warnings) {
  const notes = [];
  if (session.error && session.state === "failed") notes.push(["bad", session.error]);
  if (session.stalled) notes.push(["warn", "stalled: no progress"]);
  if (session.reason) notes.push(["info", session.reason]);
  for (const warning of warnings) notes.push(["warn", warning]);
  if (session.start.dry_run) notes.push(["info", "dry run: nothing is published"]);
  return notes;
}

// The table

function makeRow(id) {
  const row = make("tr");
  const cells = { row };
  const cell = (className) => row.appendChild(make("td", className));

  const first = cell();
  cells.open = first.appendChild(make("button", "open", id));
  cells.open.type = "button";
  cells.open.setAttribute("aria-expanded", "false");
  cells.open.setAttribute("aria-controls", "details");
  cells.open.addEventListener("click", () => (openId === id ? closeDetails() : openDetails(id)));
  cells.name = first.appendChild(make("div", "name"));

  const second = cell();
  cells.state = second.appendChild(make("span", "state"));
  cells.notes = second.appendChild(make("ul", "notes"));

  const third = cell();
  const progress = third.appendChild(make("div", "progress"));
  cells.position = third.appendChild(make("div", "quiet"));
  cells.bar = progress.appendChild(make("progress"));
  cells.bar.max = 100;
  cells.bar.setAttribute("aria-label", `Progress of ${id}`);
  cells.percent = progress.appendChild(make("span"));

  cells.read = cell("number");
  const rate = cell("number");
  cells.rate = rate.appendChild(make("div"));
  cells.limit = rate.appendChild(make("div", "quiet"));
  cells.eta = cell("number");
  cells.by = cell("name");

  const buttons = cell().appendChild(make("div", "buttons"));
  cells.buttons = {};
  for (const verb of BUTTONS) {
    const label = verb[0].toUpperCase() + verb.slice(1);
    const button = buttons.appendChild(make("button", verb === "cancel" ? "danger" : "", label));
    button.type = "button";
    button.setAttribute("aria-label", `${label} ${id}`);
    button.addEventListener("click", () => command(id, verb, button));
    cells.buttons[verb] = button;
  }
  return cells;
}

function showRow(cells, session) {
  setText(cells.name, session.start.name ?? "");
  setText(cells.state, words(session.state));
  cells.state.dataset.state = session.state;
  // Warnings are advice for the rest of the replay; the details keep the warnings.
  showNotes(cells.notes, notesOf(session, FINISHED.has(session.state) ? [] : session.warnings));

  const known = session.percent !== null;
  cells.bar.hidden = !known;
  if (known) cells.bar.value = session.percent;
  setText(cells.percent, known ? `${session.percent.toFixed(1)} %` : UNKNOWN);
  setText(cells.position, FINISHED.has(session.state) ? "" : place(session.position));
  setText(cells.read, `${count(session.plan ? session.counters.read : null)} / ${matched(session)}`);
  setText(cells.rate, pace(session.events_per_second));
  setText(cells.limit, session.rate === null ? "" : `at most ${pace(session.rate)}`);
  setText(cells.eta, duration(session.eta_seconds));
  setText(cells.by, session.start.requested_by ?? UNKNOWN);

  for (const [verb, button] of Object.entries(cells.buttons)) {
    const hidden = !(session.verbs ?? []).includes(verb) // a worker before 0.2 names no verbs;
    if (hidden && document.activeElement === button) cells.open.focus();
    button.hidden = hidden;
  }
  const open = session.replay_id === openId;
  cells.open.setAttribute("aria-expanded", String(open));
  cells.row.toggleAttribute("data-open", open);
}

function showNotes(list, notes) {
  while (list.children.length > notes.length) list.lastChild.remove();
  notes.forEach(([kind, text], number) => {
    const item = list.children[number] ?? list.appendChild(make("li"));
    item.className = kind;
    setText(item, text);
  });
}

function show(answer) {
  replays = new Map(answer.replays.map((session) => [session.replay_id, session]));
  for (const [id, cells] of rows) {
    if (!replays.has(id)) {
      cells.row.remove();
      rows.delete(id);
    }
  }
  const body = $("replays");
  let number = 0;
  for (const [id, session] of replays) {
    if (!rows.has(id)) rows.set(id, makeRow(id));
    const cells = rows.get(id);
    if (body.children[number] !== cells.row) body.insertBefore(cells.row, body.children[number] ?? null);
    showRow(cells, session);
    number += 1;
  }
  $("empty").hidden = replays.size > 0;
  $("more").hidden = replays.size < LIMIT;
  setText($("more"), `The newest ${LIMIT} replays are shown.`);
  showRejections(answer.rejections);
  showDetails();
  announce();
}

function showRejections(rejections) {
  $("refused").hidden = rejections.length === 0;
  const lines = rejections.slice(0, 10).map((r) => ["", `${time(r.at)} UTC: ${r.command ?? "command"} for ${r.replay_id}: ${r.rejected}`]);
  showNotes($("rejections"), lines);
}

// Announce changes of state only: a screen reader could not follow numbers that change every second.
function announce() {
  const now = new Map([...replays].map(([id, session]) => [id, session.state]));
  const changed = states === null ? [] : [...now].filter(([id, state]) => states.get(id) !== state);
  if (changed.length) {
    setText($("announcement"), changed.map(([id, state]) => `${id} is ${words(state)}`).join(". "));
  }
  states = now;
}

// One replay

function openDetails(id) {
  openId = id;
  refreshRows();
  showDetails();
  $("details-title").focus();
}

function closeDetails() {
  const cells = rows.get(openId);
  openId = null;
  refreshRows();
  showDetails();
  cells?.open.focus();
}

function refreshRows() {
  for (const [id, session] of replays) showRow(rows.get(id), session);
}

function showDetails() {
  const session = replays.get(openId);
  const section = $("details");
  section.hidden = !session;
  if (!session) {
    openId = null;
    delete section.dataset.version;
    return;
  }
  setText($("details-title"), session.replay_id);
  const version = `${session.replay_id} ${session.revision} ${session.updated_at}`;
  if (section.dataset.version === version) return;
  section.dataset.version = version;
  const scrolled = [...section.querySelectorAll(".frame, pre")].map((element) => element.scrollTop);
  $("details-body").replaceChildren(...detailsOf(session));
  section.querySelectorAll(".frame, pre").forEach((element, number) => {
    element.scrollTop = scrolled[number] ?? 0;
  });
}

function detailsOf(session) {
  const { counters, receipt, start, plan } = session;
  const known = (value) => count(plan ? value : null);
  const parts = [
    part("Counters", facts([
      ["Matched", matched(session)],
      ["Read", known(counters.read)],
      ["Published", known(counters.published)],
      ["Skipped", known(counters.skipped)],
      ["Dead-lettered", known(counters.dead_lettered)],
    ])),
    part("Course", facts([
      ["State", words(session.state)],
      ["Attempt", count(session.attempt)],
      ["Requested by", start.requested_by ?? UNKNOWN],
      ["Reason given", start.reason ?? UNKNOWN],
      ["Created (UTC)", time(session.created_at)],
      ["Started (UTC)", time(session.started_at)],
      ["Ended (UTC)", time(session.ended_at)],
      ["Position (UTC)", place(session.position) || UNKNOWN],
      ["Source", source(session)],
      ["Ordering", start.ordering],
      ["Shards", count(plan ? session.shards.length : null)],
      ["Repairs", count(session.repairs)],
    ])),
    part("By type", tally(sum(session, "by_type"), plan?.by_type)),
    part("By topic", tally(sum(session, "by_topic"), plan?.by_topic)),
  ];
  if (receipt) {
    parts.push(part("Receipt", facts([
      ["Published", count(receipt.counters.published)],
      ["Bytes", count(receipt.bytes)],
      ["Took", duration(receipt.seconds)],
      ["Visible (UTC)", time(receipt.visible_at)],
      ["Stored behind", count(receipt.behind)],
      ["Failures", count(session.shards.reduce((total, shard) => total + shard.progress.failed, 0))],
    ])));
    const ranges = Object.entries(receipt.offsets).sort().flatMap(([topic, partitions]) =>
      Object.entries(partitions).map(([number, [first, last]]) => [topic, number, count(first), count(last)]));
    if (ranges.length) {
      parts.push(part("Offsets written", grid(["Topic", "Partition", "First", "Last"], ranges), "wide"));
    }
  }
  if (start.consumers?.length) {
    const heads = ["Consumer group", "State", "Records behind", "Has read all since (UTC)", "Looked at (UTC)"];
    parts.push(part("Consumers", grid(heads, start.consumers.map((group) => consumer(session, group))), "wide"));
  }
  const live = Object.entries(session.handover ?? {}).sort().flatMap(([topic, partitions]) =>
    Object.entries(partitions ?? {}).map(([number, offset]) => [topic, number, count(offset)]));
  if (live.length) {
    parts.push(part("Hand-over to live", grid(["Topic", "Partition", "Offset"], live), "wide"));
  }
  const failures = receipt?.failures ?? session.shards.flatMap((shard) => shard.progress.failures);
  if (failures.length) {
    parts.push(part("Failed events", grid(["Event", "Reason"], failures.map((f) => [f.event_id ?? UNKNOWN, f.reason])), "wide"));
  }
  const notes = make("ul", "notes");
  showNotes(notes, notesOf(session));
  if (notes.children.length) parts.unshift(part("Notes", notes, "wide"));
  parts.push(part("Command", make("pre", "", JSON.stringify(start, null, 2)), "wide"));
  return parts;
}

function consumer(session, group) {
  const found = session.consumption?.[group];
  if (!found) return [group, "not looked at yet", UNKNOWN, UNKNOWN, UNKNOWN];
  const state = { unseen: "not seen yet", empty: "no members", active: "active" }[found.state];
  return [
    group,
    found.reason ? `${state}: ${found.reason}` : state,
    count(found.lag),
    time(found.consumed_at),
    time(found.checked_at),
  ];
}

function part(title, content, className) {
  const element = make("div", className);
  element.append(make("h3", "", title), content);
  return element;
}

function facts(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs) list.append(make("dt", "", name), make("dd", "", value));
  return list;
}

function grid(heads, lines) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  const kind = (number) => (heads.length > 2 && number > 0 ? "number" : "");
  for (const [number, text] of heads.entries()) {
    head.appendChild(make("th", kind(number), text)).scope = "col";
  }
  const body = table.createTBody();
  for (const line of lines) {
    const row = body.insertRow();
    for (const [number, text] of line.entries()) row.append(make("td", kind(number), text));
  }
  const frame = make("div", "frame");
  frame.append(table);
  return frame;
}

function sum(session, member) {
  const total = {};
  for (const shard of session.shards) {
    for (const [name, value] of Object.entries(shard.progress[member])) total[name] = (total[name] ?? 0) + value;
  }
  return total;
}

function tally(done, planned) {
  const names = [...new Set([...Object.keys(planned ?? {}), ...Object.keys(done)])].sort();
  if (!names.length) return make("p", "quiet", UNKNOWN);
  return facts(names.map((name) => {
    const expected = planned?.[name];
    return [name, expected === undefined ? count(done[name]) : `${count(done[name] ?? 0)} / ${count(expected)}`];
  }));
}

// The worker

async function ask(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.detail ?? answer.statusText), { status: answer.status });
  return body;
}

async function command(id, verb, button) {
  if (verb === "cancel" && !confirm(`Cancel ${id}? A cancelled replay cannot go on.`)) return;
  button.disabled = true;
  say("");
  try {
    await ask(`replays/${encodeURIComponent(id)}/${verb}`, { method: "POST", body: "{}" });
  } catch (error) {
    if (error.status === 401) askForToken();
    else say(error.status ? error.message : "The worker does not answer; the command may not have arrived.");
  } finally {
    button.disabled = false;
  }
}

function say(text) {
  setText($("message"), text);
  $("message").hidden = !text;
}

function askForToken() {
  if (!$("token-form").hidden) return;
  $("token-form").hidden = false;
  $("token").focus();
}

function connection(state, text) {
  $("connection").dataset.state = state;
  setText($("connection"), text);
}

async function poll() {
  try {
    show(await ask(`replays?limit=${LIMIT}`));
    connection("live", "live");
  } catch (error) {
    if (error.status === 401) {
      connection("waiting", "waiting for the token");
      askForToken();
    } else {
      connection("away", "the worker does not answer; trying again");
    }
  }
}

async function keepPolling() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  $("token").value = "";
  $("token-form").hidden = true;
  say("");
  poll();
});
$("close").addEventListener("click", closeDetails);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && openId !== null) closeDetails();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});
keepPolling();
