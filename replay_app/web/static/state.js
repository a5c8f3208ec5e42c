// What the console knows: the replays, the workers, and how well it is connected. One stream feeds
// it; views watch it.

import { ApiError, ask, follow, hasToken, replayPath } from "./api.js";
import { isEnded } from "./format.js";

const NOTIFY_MS = 60; // changes that come together are shown together
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const POLL_MS = 2000;
const MOST_ENDED = 500; // ended replays that are kept; the history asks for its own pages
const MOST_REJECTIONS = 50;

class State {
  sessions = new Map();
  workers = null; // the answer of /workers
  rejections = [];
  connection = { kind: "connecting", text: "connecting" }; // also live, polling, away, token
  asOf = null; // when the worker last said something
  generation = 0; // one more after each reconnect: what else was asked for may be old
  #watchers = new Set();
  #changed = new Set();
  #timer = null;
  #wake = null;
  #abort = null;

  // Call `watcher(ids)` soon after each change, with the ids of the replays that changed.
  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  get mayOperate() {
    return this.workers?.you?.role !== "read";
  }

  get isStale() {
    return ["away", "token"].includes(this.connection.kind);
  }

  put(session) {
    const old = this.sessions.get(session.replay_id);
    if (old && old.created_at === session.created_at && old.revision > session.revision) return;
    this.sessions.set(session.replay_id, session);
    this.#note(session.replay_id);
    if (this.sessions.size > 2 * MOST_ENDED) this.#forgetOldest();
  }

  #forgetOldest() {
    const ended = [...this.sessions.values()].filter(isEnded);
    ended.sort((a, b) => a.updated_at.localeCompare(b.updated_at));
    for (const session of ended.slice(0, Math.max(0, ended.length - MOST_ENDED))) this.sessions.delete(session.replay_id);
  }

  // Every replay that has not ended and is not among `ids` is gone, or has ended meanwhile.
  #keepOnly(ids) {
    for (const [id, session] of this.sessions) {
      if (!isEnded(session) && !ids.has(id)) {
        this.sessions.delete(id);
        this.#note(id);
      }
    }
  }

  #note(id) {
    if (id) this.#changed.add(id);
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      const ids = this.#changed;
      this.#changed = new Set();
      for (const watcher of [...this.#watchers]) watcher(ids);
    }, NOTIFY_MS);
  }

  #connect(kind, text) {
    if (this.connection.kind === kind && this.connection.text === text) return;
    this.connection = { kind, text };
    this.#note();
  }

  #hear() {
    this.asOf = new Date();
  }

  // Try again now: somebody is waiting.
  wake() {
    this.#wake?.();
  }

  // Begin again, as somebody else: there is another token.
  reconnect() {
    this.#abort?.abort();
    this.#wake?.();
  }

  #sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async keepConnected() {
    let wait = FIRST_WAIT_MS;
    for (;;) {
      try {
        await this.#stream(() => (wait = FIRST_WAIT_MS));
        this.#connect("away", "the connection ended; trying again");
      } catch (error) {
        if (await this.#fails(error)) continue;
      }
      await this.#sleep(wait * (0.8 + 0.4 * Math.random()));
      wait = Math.min(2 * wait, LONGEST_WAIT_MS);
    }
  }

  async #stream(onReady) {
    const seen = new Set();
    let isReady = false;
    this.#abort = new AbortController();
    const onEvent = (name, data) => {
      this.#hear();
      if (name === "hello" || name === "workers") {
        this.workers = data;
        this.#note();
      } else if (name === "replay") {
        if (!isReady) seen.add(data.replay_id);
        this.put(data);
      } else if (name === "ready") {
        isReady = true;
        this.#keepOnly(seen);
        this.#live("live");
        onReady();
      } else if (name === "forgotten") {
        this.sessions.delete(data.replay_id);
        this.#note(data.replay_id);
      } else if (name === "rejection") {
        this.rejections = [data, ...this.rejections].slice(0, MOST_REJECTIONS);
        this.#note();
      }
    };
    await follow(onEvent, this.#abort);
  }

  #live(text) {
    if (this.connection.kind !== "polling") this.generation += 1;
    this.#connect(text === "live" ? "live" : "polling", text);
  }

  // Deal with a failed stream. Returns whether to try again at once.
  async #fails(error) {
    if (error instanceof ApiError && error.status === 401) {
      this.#connect("token", hasToken() ? "this token is not known to the worker" : "the worker asks for a token");
      await this.#sleep(1e9);
      this.#connect("connecting", "connecting");
      return true;
    }
    if (error instanceof ApiError && error.status === 503 && error.retryAfter !== null) {
      return this.#pollFor(error.retryAfter * 1000);
    }
    const text = error instanceof ApiError ? `the worker answers ${error.status}: ${error.message}` : "the worker does not answer; trying again";
    this.#connect("away", text);
    return false;
  }

  // The worker has no stream to give: ask for the list until the time that it named is over.
  async #pollFor(milliseconds) {
    const until = Date.now() + milliseconds;
    do {
      try {
        const [listed, workers] = await Promise.all([ask("replays?limit=100"), ask("workers")]);
        this.#hear();
        this.workers = workers;
        this.rejections = listed.rejections.slice(0, MOST_REJECTIONS);
        for (const session of listed.replays) this.put(session);
        this.#keepOnly(new Set(listed.replays.map((session) => session.replay_id)));
        this.#live("polling: all streams of this worker are taken");
        this.#note();
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) return true; // the stream asks for the token
        this.#connect("away", "the worker does not answer; trying again");
        return false;
      }
      await this.#sleep(Math.min(POLL_MS, Math.max(0, until - Date.now())));
    } while (Date.now() < until);
    return true;
  }

  // The newest session of a replay, from the worker.
  async fetch(id, signal) {
    const session = await ask(replayPath(id), { signal });
    this.put(session);
    return this.sessions.get(id);
  }
}

export const state = new State();
