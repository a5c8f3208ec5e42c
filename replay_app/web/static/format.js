// How the console says things. Only functions: data goes in, text comes out.

export const UNKNOWN = "—";
export const TERMINAL = new Set(["completed", "completed_with_errors", "cancelled"]);

export const isEnded = (session) => TERMINAL.has(session.state);
const known = (value) => value !== null && value !== undefined;

export const count = (value) => (known(value) ? value.toLocaleString("en") : UNKNOWN);
export const words = (state) => state.replaceAll("_", " ");
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
export const titleOf = (session) => session.start.name ?? session.replay_id;

export function pace(value) {
  if (!known(value)) return UNKNOWN;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

export function short(value) {
  if (!known(value)) return UNKNOWN;
  return value < 10000 ? pace(value) : value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
}

export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 10) return `${seconds.toLocaleString("en", { maximumFractionDigits: 1 })} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${count(Math.floor(whole / 86400))} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// A duration that is an estimate: no more digits than anybody can know.
export function roughly(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const units = [["s", 1, 90], ["min", 60, 5400], ["h", 3600, 172800], ["d", 86400, Infinity]];
  const [unit, size] = units.find(([, , most]) => seconds < most);
  const number = seconds / size;
  const step = number >= 50 ? 10 : number >= 20 ? 5 : 1;
  return `${count(Math.max(1, Math.round(number / step) * step))} ${unit}`;
}

export function age(iso, now = Date.now()) {
  if (!iso) return UNKNOWN;
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (seconds < 60) return "now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${count(Math.floor(seconds / 86400))} d`;
}

// Times: in the viewer's zone, with UTC beside them on hover.

const part = (options) => new Intl.DateTimeFormat("en-GB", { hourCycle: "h23", ...options });
const DAY = part({ day: "numeric", month: "short" });
const YEAR = part({ day: "numeric", month: "short", year: "numeric" });
const MINUTE = part({ hour: "2-digit", minute: "2-digit" });
const SECOND = part({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const ZONE = part({ hour: "2-digit", timeZoneName: "short" });

export const clock = (moment) => SECOND.format(moment);
export const utc = (iso) => `${new Date(iso).toISOString().slice(0, 19).replace("T", " ")} UTC`;
export const zoneOf = (moment) => ZONE.formatToParts(moment).find((one) => one.type === "timeZoneName")?.value ?? "";

export function day(iso) {
  const moment = new Date(iso);
  return (moment.getFullYear() === new Date().getFullYear() ? DAY : YEAR).format(moment);
}

export const minute = (iso) => `${day(iso)} ${MINUTE.format(new Date(iso))}`;
export const second = (iso) => `${day(iso)} ${SECOND.format(new Date(iso))}`;

// A bound of a time: midnight is a day.
export const bound = (iso) => (MINUTE.format(new Date(iso)) === "00:00" ? day(iso) : minute(iso));

// A cell of a Grid or Facts that shows a time.
export const timeCell = (iso, say = second) => (iso ? { text: say(iso), time: iso, title: utc(iso) } : UNKNOWN);

// What a replay does

export const isCounting = ({ matched, plan, state }) =>
  !known(matched) && plan?.counted === "running" && ["waiting", "running"].includes(state);

export function matchedOf(session) {
  return isCounting(session) ? "counting" : count(session.matched);
}

export const readOf = (session) => (session.plan ? session.counters.read : null);

export const failedOf = (session) =>
  session.plan ? session.shards.reduce((total, shard) => total + shard.progress.failed, 0) : null;

export function positionOf({ position }) {
  return position ? `at ${minute(position.time)} of ${bound(position.end)}` : "";
}

export function sum(session, member) {
  const total = {};
  for (const shard of session.shards) {
    for (const [name, value] of Object.entries(shard.progress[member])) total[name] = (total[name] ?? 0) + value;
  }
  return total;
}

// Where a replay publishes: {text, isLive}. `workers` is the answer of /workers, if it is known.
export function targetOf({ start, plan, receipt }, workers) {
  const { topic, prefix, topics } = start.target ?? {};
  // A plan that has served its time has lost its lists; the receipt keeps its own.
  const number = Math.max(...[plan?.partitions, receipt?.by_topic].map((counts) => Object.keys(counts ?? {}).length));
  const many = number ? `, ${plural(number, "topic")}` : "";
  if (prefix) return { text: `to ${prefix}*${many}`, isLive: false };
  if (topic) return { text: `to ${topic}${number > 1 ? many : ""}`, isLive: false };
  const mapped = Object.keys(topics ?? {}).length ? ", some types elsewhere" : "";
  const elsewhere = workers?.target_cluster && workers.target_cluster !== workers.cluster;
  if (elsewhere) return { text: `to original names on ${workers.target_cluster}${many}${mapped}`, isLive: false };
  return { text: `LIVE topics${many}${mapped}`, isLive: true };
}

const OPERATORS = { gte: "≥", gt: ">", lte: "≤", lt: "<", ne: "≠", in: "in", exists: "exists" };
const isTyped = (value) => Object.keys(value).some((name) => name.startsWith("$"));

function conditionText(path, condition) {
  if (typeof condition !== "object" || condition === null || isTyped(condition)) {
    return `${path} = ${plainValue(condition)}`;
  }
  return Object.entries(condition)
    .map(([name, value]) => `${path} ${OPERATORS[name] ?? name} ${plainValue(value)}`)
    .join(", ");
}

function plainValue(value) {
  if (Array.isArray(value)) return value.length > 3 ? plural(value.length, "value") : value.map(plainValue).join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

const listed = (names, noun) => (names.length <= 2 ? names.join(", ") : plural(names.length, noun));

// Which events, in a few words.
export function filterOf(start) {
  const filter = start.filter ?? {};
  const parts = [];
  if (filter.event_types?.length) parts.push(listed(filter.event_types, "type"));
  if (filter.exclude_event_types?.length) parts.push(`not ${listed(filter.exclude_event_types, "type")}`);
  if (filter.aggregate_ids?.length) parts.push(`of ${listed(filter.aggregate_ids.map(String), "aggregate")}`);
  if (filter.event_ids?.length) parts.push(plural(filter.event_ids.length, "event id"));
  for (const [path, condition] of Object.entries(filter.fields ?? {})) parts.push(conditionText(path, condition));
  if (filter.start && filter.end) parts.push(`${bound(filter.start)} to ${bound(filter.end)}`);
  else if (filter.start) parts.push(`since ${bound(filter.start)}`);
  else if (filter.end) parts.push(`until ${bound(filter.end)}`);
  if (start.until_event_id !== null && start.until_event_id !== undefined) parts.push(`up to event ${start.until_event_id}`);
  if (start.max_events) parts.push(`first ${count(start.max_events)}`);
  return parts.join(", ") || "all events";
}

// From the start, or from the command, to the end, or to now.
export function tookSeconds(session, now = Date.now()) {
  if (session.receipt) return session.receipt.seconds;
  const begin = session.started_at ?? session.created_at;
  return Math.max(0, ((session.ended_at ? Date.parse(session.ended_at) : now) - Date.parse(begin)) / 1000);
}

// The events that have failed: [{event_id, reason, shard}].
export const failuresOf = (session) =>
  session.shards.flatMap((shard, number) => shard.progress.failures.map((one) => ({ ...one, shard: number })));
