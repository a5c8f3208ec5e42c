// The series of one replay, as it grows: asked for now and then, with the live numbers behind it.

import { ask, replayPath } from "./api.js";
import { intervals } from "./speed.js";

const AGAIN_MS = 5000;

export class Course {
  points = [];
  #id;
  #asked = 0;
  #revision = null;
  #isAsking = false;

  constructor(id, onChange) {
    this.#id = id;
    this.onChange = onChange;
  }

  // Ask again if the replay has changed since, at most every few seconds.
  refresh(session, now = Date.now()) {
    if (this.#isAsking || this.#revision === session.revision || now - this.#asked < AGAIN_MS) return;
    this.#asked = now;
    this.#isAsking = true;
    const { revision } = session;
    ask(replayPath(this.#id, "/series"))
      .then(({ points }) => {
        this.points = points;
        this.#revision = revision;
        this.onChange();
      })
      .catch(() => {}) // the connection says that the worker is away; the next change asks again
      .finally(() => (this.#isAsking = false));
  }

  steps(session) {
    return intervals(this.points, session.shards.filter((shard) => shard.progress.counters.read > 0).length);
  }

  // Speeds over time, the live one last: [{at, speed}].
  speeds(session) {
    const found = this.steps(session).map(({ at, speed }) => ({ at, speed }));
    const live = Date.parse(session.updated_at);
    if (session.state === "running" && session.events_per_second !== null && live > (found.at(-1)?.at ?? 0)) {
      found.push({ at: live, speed: session.events_per_second });
    }
    return found;
  }
}
