// Questions. A <dialog> holds the focus, and gives it back.

import { h } from "./dom.js";

function open(title, content, buttons) {
  const heading = h("h2", { id: "dialog-title" }, title);
  const form = h("form", {}, ...content, h("div", { class: "buttons" }, ...buttons));
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, heading, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close(event.submitter?.value ?? "");
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}

// Ask whether to go on. The safe answer has the focus.
export async function confirmed(title, text, yes, no) {
  const keep = h("button", { type: "submit", value: "", autofocus: true }, no);
  const go = h("button", { type: "submit", value: "yes", class: "danger" }, yes);
  return (await open(title, [h("p", {}, text)], [keep, go])) === "yes";
}

// Ask for a number from 1; null if there is no answer.
export async function askNumber(title, label, value, yes, max) {
  const input = h("input", { type: "number", min: "1", max, step: "1", required: true, autofocus: true, id: "dialog-number" });
  input.value = value;
  // The first button is the one that Enter presses.
  const go = h("button", { type: "submit", value: "yes", class: "primary" }, yes);
  const no = h("button", { type: "submit", value: "", formnovalidate: true }, "Not now");
  const answer = await open(title, [h("p", {}, h("label", { for: "dialog-number" }, label), " ", input)], [go, no]);
  return answer === "yes" ? Number(input.value) : null;
}

export async function showDialog(title, ...content) {
  await open(title, content, [h("button", { type: "submit", value: "", autofocus: true }, "Close")]);
}
