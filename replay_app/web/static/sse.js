// Server-sent events out of pieces of text (the HTML standard, 9.2.6). EventSource would not do: it
// cannot send the token.

export class Events {
  #rest = "";
  #event = "";
  #data = [];

  // Take a piece of text; return the events that it completes: [{event, data}].
  read(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line) {
    if (line === "") {
      const found = this.#data.length ? [{ event: this.#event || "message", data: this.#data.join("\n") }] : [];
      this.#event = "";
      this.#data = [];
      return found;
    }
    const [, field, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (field === "event") this.#event = value ?? "";
    if (field === "data") this.#data.push(value ?? "");
    return [];
  }
}
