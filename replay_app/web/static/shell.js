// A start command as others can run it: its body as JSON, curl, and the command line.

import { BASE, hasToken } from "./api.js";

const DEFAULTS = { ordering: "global", on_error: "fail", preflight: "quick" };

function isDefault(name, value) {
  if (value === null || value === undefined || value === false || value === DEFAULTS[name]) return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

function pruned(members) {
  const kept = Object.entries(members).filter(([name, value]) => !isDefault(name, value));
  return Object.fromEntries(kept);
}

// The members of a start that are not their defaults. The id, and who asked, belong to one replay only.
export function bodyOf(start) {
  const { replay_id: _id, command: _command, requested_by: _by, ...members } = start;
  for (const part of ["filter", "target", "source"]) {
    if (members[part]) members[part] = pruned(members[part]);
  }
  return pruned(members);
}

// One word of a POSIX shell.
export function quoted(text) {
  const word = String(text);
  return /^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

export function curlOf(body) {
  const secret = hasToken() ? ' \\\n  -H "Authorization: Bearer $REPLAY_API_TOKEN"' : "";
  const data = quoted(JSON.stringify(body));
  return `curl -X POST ${quoted(new URL("replays", BASE).href)} \\\n  -H 'Content-Type: application/json'${secret} \\\n  -d ${data}`;
}

const option = (name, value) => (String(value).startsWith("-") ? `${name}=${quoted(value)}` : `${name} ${quoted(value)}`);
const many = (name) => (values) => values.map((value) => option(name, value));
const one = (name) => (value) => [option(name, value)];
const flag = (name) => () => [name];
const pairs = (name, say = String) => (map) => Object.entries(map).map(([key, value]) => option(name, `${key}=${say(value)}`));

const OPTIONS = {
  filter: {
    all: flag("--all"),
    start: one("--start"),
    end: one("--end"),
    event_types: many("--event-type"),
    exclude_event_types: many("--exclude-event-type"),
    aggregate_ids: many("--aggregate-id"),
    event_ids: many("--event-id"),
    fields: pairs("--field", JSON.stringify),
  },
  source: { database: one("--database"), collection: one("--collection"), mapping: one("--mapping") },
  target: { topic: one("--to-topic"), topics: pairs("--to"), prefix: one("--prefix") },
  body: {
    name: one("--name"),
    reason: one("--reason"),
    until_event_id: one("--until-event-id"),
    max_events: one("--max-events"),
    include_replayed: flag("--include-replayed"),
    redact: pairs("--redact"),
    transforms: many("--transform"),
    ordering: one("--ordering"),
    shards: one("--shards"),
    speed: one("--speed"),
    max_gap_seconds: one("--max-gap-seconds"),
    rate: one("--rate"),
    on_error: one("--on-error"),
    check_schemas: flag("--check-schemas"),
    dry_run: flag("--dry-run"),
    paused: flag("--paused"),
    control_records: flag("--control-records"),
    preflight: one("--preflight"),
    consumers: many("--consumer"),
    max_lag: one("--max-lag"),
    after: many("--after"),
    to_original: flag("--to-original"),
  },
};

const isText = (value) => typeof value === "string";
const hasPlainKeys = (map) => Object.keys(map ?? {}).every((key) => !key.includes("="));

// Whether options can say all of it: they give ids as text, and split at the first "=".
function fitsOptions(body) {
  const { filter = {}, target = {} } = body;
  const ids = [...(filter.aggregate_ids ?? []), ...(filter.event_ids ?? []), ...(body.after ?? []), body.until_event_id ?? ""];
  const conditions = Object.values(filter.fields ?? {});
  const maps = [filter.fields, target.topics, body.redact];
  return ids.every(isText) && !conditions.some(Array.isArray) && maps.every(hasPlainKeys);
}

function words(part, members) {
  return Object.entries(members).flatMap(([name, value]) => OPTIONS[part][name]?.(value) ?? [null]);
}

export function cliOf(body) {
  const { filter = {}, source = {}, target = {}, ...rest } = body;
  const parts = [...words("filter", filter), ...words("source", source), ...words("target", target), ...words("body", rest)];
  if (fitsOptions(body) && !parts.includes(null)) return ["replay-app start", ...parts].join(" \\\n  ");
  return `replay-app start --file - <<'END'\n${JSON.stringify(body)}\nEND`;
}

// How to create the topics that a replay of this body would publish to.
export function topicsCommand({ filter = {}, source = {}, target = {} }) {
  const parts = [...words("filter", filter), ...words("source", source), ...words("target", target)];
  return ["replay-app topics --create-destinations --execute", ...parts].join(" \\\n  ");
}

// How to look at the stored document of an event.
export function eventCommand(eventId, source) {
  const from = words("source", pruned(source ?? {}));
  return ["replay-app events", option("--event-id", eventId), ...from].join(" ");
}
