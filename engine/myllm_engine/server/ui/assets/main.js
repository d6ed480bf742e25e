/* Put the page together: what is shown, the key, and the three parts that do the work. */

import { Chat } from "./chat.js";
import { EngineView } from "./engine.js";
import { Server } from "./server.js";

const root = document.documentElement;
const find = (id) => document.getElementById(id);

const server = new Server(() => find("key").value.trim());
const engine = new EngineView(server, { onServer: describe, onState: showState });
const chat = new Chat(server, { readParameters, onUnauthorized: askForKey });

function describe({ model }) {
  find("model-name").textContent = model;
  find("welcome-name").textContent = model;
  document.title = `${model} · myllm`;
}

function showState(state, text) {
  find("status").dataset.state = state;
  if (find("status-text").textContent !== text) find("status-text").textContent = text;
}

/* The chat is always there on a wide screen, with one of the panels beside it; a small screen has one view. */
function show(view) {
  root.dataset.view = view;
  if (view !== "chat") root.dataset.panel = view;
  markView();
}

function markView() {
  const shown = narrow.matches ? root.dataset.view : root.dataset.panel;
  for (const button of document.querySelectorAll("[data-show]")) {
    button.setAttribute("aria-pressed", String(button.dataset.show === shown));
  }
}

const narrow = matchMedia("(max-width: 899px)");
narrow.addEventListener("change", markView);
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => show(button.dataset.show));
}
markView();

find("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

find("example").addEventListener("click", () => {
  const example = {
    type: "object",
    properties: {
      name: { type: "string", maxLength: 40 },
      year: { type: "integer" },
      tags: { type: "array", items: { enum: ["red", "green", "blue"] }, maxItems: 3 },
    },
    required: ["name", "year", "tags"],
    additionalProperties: false,
  };
  find("schema").value = JSON.stringify(example, null, 2);
});

/* An empty field is left out of the request. Values are sent as they stand: the server judges them. */
function readParameters() {
  const parameters = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const field = find(name);
    if (field.validity.badInput) throw new Error(`${field.labels[0].textContent} is not a number.`);
    if (field.value !== "") parameters[name] = Number(field.value);
  }
  const schema = find("schema").value.trim();
  if (schema) {
    parameters.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parse(schema) } };
  }
  if (find("model").value) parameters.model = find("model").value;
  return { system: find("system").value.trim(), parameters };
}

function parse(schema) {
  try {
    return JSON.parse(schema);
  } catch (error) {
    throw new Error(`The JSON Schema is not JSON: ${error.message}`);
  }
}

function askForKey() {
  show("settings");
  find("key").focus();
}

async function listModels() {
  const models = await server.models();
  find("model").replaceChildren(...models.map((id) => new Option(id, id)));
}

/* With a key the server says more than without one. */
async function connect() {
  try {
    await listModels();
  } catch (error) {
    if (error.status === 401) askForKey();
  }
  engine.start();
}

find("key").addEventListener("change", connect);
find("parameters").addEventListener("submit", (event) => event.preventDefault());
chat.focus();
connect();
