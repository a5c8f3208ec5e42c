// The worker's HTTP API. All addresses are relative to this module, so a path prefix in front of the
// worker, and the depth of the page's own address, change nothing.

import { Events } from "./sse.js";

export const BASE = new URL("../", import.meta.url);
const TIMEOUT_MS = 10000;
const SILENCE_MS = 40000; // the worker says something every 15 seconds
const TOKEN = "token";

let token = sessionStorage.getItem(TOKEN);

export const hasToken = () => Boolean(token);

export function useToken(text) {
  token = text.trim();
  sessionStorage.setItem(TOKEN, token);
}

export class ApiError extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function headers(more) {
  return { ...more, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

async function failure(answer) {
  let detail = answer.statusText || `status ${answer.status}`;
  try {
    detail = (await answer.json()).detail ?? detail;
  } catch {
    // A proxy's answer may be no JSON.
  }
  const seconds = Number(answer.headers.get("Retry-After"));
  return new ApiError(answer.status, detail, seconds > 0 ? seconds : null);
}

// Ask a path for JSON. Raises ApiError for an answer that is an error, and TypeError or
// DOMException where no answer comes.
export async function ask(path, { method = "GET", body, signal, timeout = TIMEOUT_MS } = {}) {
  const limit = AbortSignal.timeout(timeout);
  const answer = await fetch(new URL(path, BASE), {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: headers({ Accept: "application/json", ...(body === undefined ? {} : { "Content-Type": "application/json" }) }),
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
  });
  if (!answer.ok) throw await failure(answer);
  return answer.json();
}

export const replayPath = (id, rest = "") => `replays/${encodeURIComponent(id)}${rest}`;

// Read the stream of all replays until it ends: `onEvent(name, data)`. Raises as `ask` does.
export async function follow(onEvent, abort = new AbortController()) {
  let timer = setTimeout(() => abort.abort(), TIMEOUT_MS);
  try {
    const answer = await fetch(new URL("events", BASE), {
      headers: headers({ Accept: "text/event-stream" }),
      signal: abort.signal,
    });
    if (!answer.ok) throw await failure(answer);
    const events = new Events();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE_MS);
      const { value, done } = await reader.read();
      if (done) return;
      for (const { event, data } of events.read(value)) onEvent(event, JSON.parse(data));
    }
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
}
