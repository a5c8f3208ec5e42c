// What a replay's series says: how fast it was, what it waited for, and how long it may still take.
// Only functions.

import { isCounting, pace, roughly } from "./format.js";

export const PARTS = ["store", "encoder", "broker"];
const RECENT_SECONDS = 60;
const LIMITED_SHARE = 0.2; // of the time: a shorter wait limits nobody
const NEAR_RATE = 0.9;

// Differences of the series' points: [{at, seconds, speed, store, encoder, broker}]. `at` is the end
// in milliseconds, `speed` events read a second, and the waits are shares of the time of one shard.
export function intervals(points, shards = 1) {
  const found = [];
  for (let number = 1; number < points.length; number += 1) {
    const [before, after] = [points[number - 1], points[number]];
    const at = Date.parse(after.at);
    const seconds = (at - Date.parse(before.at)) / 1000;
    if (seconds <= 0) continue;
    const gain = (member) => Math.max(0, after[member] - before[member]) / seconds;
    const waits = PARTS.map((name) => [name, Math.min(1, gain(`${name}_seconds`) / Math.max(1, shards))]);
    found.push({ at, seconds, speed: gain("read"), ...Object.fromEntries(waits) });
  }
  return found;
}

function recent(steps) {
  const last = steps.at(-1)?.at ?? 0;
  return steps.filter((step) => step.at > last - RECENT_SECONDS * 1000);
}

// The largest wait of the last minute: {name, share}; null if nothing is known.
function largestWait(steps) {
  const last = recent(steps);
  const total = last.reduce((sum, step) => sum + step.seconds, 0);
  if (!total) return null;
  const shares = PARTS.map((name) => ({ name, share: last.reduce((sum, step) => sum + step[name] * step.seconds, 0) / total }));
  return shares.reduce((most, one) => (one.share > most.share ? one : most));
}

// What limits a replay, in words; "" where nothing can be said.
export function limitOf(session, steps) {
  if (session.hold) return `lag: ${session.hold}`;
  if (session.state !== "running") return session.reason ?? "";
  if (session.stalled) return `stalled: ${session.reason ?? "no progress"}`;
  if (session.reason) return session.reason;
  const speed = session.events_per_second ?? 0;
  if (session.rate !== null && speed >= NEAR_RATE * session.rate) return `the rate, ${pace(session.rate)}/s`;
  if (session.start.speed) return `the events' own pace, ${pace(session.start.speed)} times as fast`;
  const wait = largestWait(steps);
  if (wait && wait.share >= LIMITED_SHARE) return `${wait.name}, ${Math.round(100 * wait.share)} % of the time`;
  return session.rate !== null ? `the rate, ${pace(session.rate)}/s` : wait ? "the worker itself" : "";
}

function quantile(numbers, share) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// The time left, no more exact than the speed is steady: "about 5 min", "4 min to 7 min".
export function timeLeft(session, steps) {
  const { state, matched, counters, eta_seconds: seconds, start, position } = session;
  if (state !== "running") return { failed: "", paused: "paused", pausing: "pausing", waiting: "waits" }[state] ?? "";
  if (session.finishing) return "finishing";
  if (start.speed && position) {
    const rest = Math.max(0, Date.parse(position.end) - Date.parse(position.time)) / 1000 / start.speed;
    return `${start.max_gap_seconds ? "at most" : "about"} ${roughly(rest)}`;
  }
  if (isCounting(session)) return "counting the events";
  if (matched === null) return "unknown: the events are not counted";
  if (seconds === null) return "unknown";
  const left = Math.max(0, matched - counters.read);
  if (left === 0) return "finishing";
  const speeds = recent(steps).map((step) => step.speed).filter((speed) => speed > 0);
  if (speeds.length >= 5) {
    const [fast, slow] = [left / quantile(speeds, 0.75), left / quantile(speeds, 0.25)].map(roughly);
    if (fast !== slow && quantile(speeds, 0.75) > 1.5 * quantile(speeds, 0.25)) return `${fast} to ${slow}`;
  }
  return `about ${roughly(seconds)}`;
}
