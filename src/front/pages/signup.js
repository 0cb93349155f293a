// The sign-up page: offers the contracts as they are mounted, sends what was filled in, and hands
// request and answer on to be shown. The server alone judges the fields.

import { Exchange } from "/pages/exchange.js";
import { Trip } from "/pages/trip.js";

const FIELDS = {
  username: { label: "User name", complete: "username" },
  "fullname.firstname": { label: "First name", complete: "given-name" },
  "fullname.lastname": { label: "Last name", complete: "family-name" },
  firstname: { label: "First name", complete: "given-name" },
  lastname: { label: "Last name", complete: "family-name" },
  email: { label: "Email", complete: "email", type: "email" },
  password: { label: "Password", complete: "new-password", type: "password" },
};

const $ = (id) => document.getElementById(id);
const form = $("form");
const exchange = new Exchange();
const trip = new Trip();
let mounts = [];
let chosen = null;
let sending = false;

/** Makes an element: `make("label", { for: "x" }, "Text", child)`. */
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The fields of a document's schema, nested ones with a dotted name, in the order people expect. */
function fieldsOf(schema, prefix = "") {
  const found = Object.entries(schema.properties).flatMap(([name, field]) => {
    const path = prefix + name;
    if (field.properties) return fieldsOf(field, `${path}.`);
    const optional = !schema.required.includes(name);
    return [{ path, optional, hint: field.description }];
  });
  const order = Object.keys(FIELDS);
  return found.sort((a, b) => order.indexOf(a.path) - order.indexOf(b.path));
}

function offer(mount, index) {
  const id = `contract-${mount.contract}-${index}`;
  const radio = make("input", { type: "radio", name: "contract", id, value: index });
  radio.checked = index === 0;
  radio.addEventListener("change", () => choose(mount));
  const path = make("code", {}, `POST ${mount.anyPrefix ? "…" : ""}${mount.path}`);
  return make("label", { for: id }, radio, make("b", {}, mount.contract), path);
}

/** Shows the fields of a mount; what was typed stays where a field has the same name. */
function choose(mount) {
  const kept = values();
  chosen = mount;
  $("wrong").textContent = "";
  $("fields").replaceChildren(...fieldsOf(mount.document).map((field) => {
    const { label, complete, type = "text" } = FIELDS[field.path] ?? { label: field.path };
    const id = `field-${field.path}`;
    const input = make("input", {
      id, type, name: field.path, autocomplete: complete ?? "off", autocapitalize: "none",
      spellcheck: "false", "aria-describedby": `${id}-hint ${id}-error`,
    });
    if (!field.optional) input.setAttribute("aria-required", "true");
    input.value = kept[field.path] ?? kept[field.path.split(".").pop()] ?? kept[`fullname.${field.path}`] ?? "";
    input.addEventListener("input", () => mark(input, ""));
    const name = make("label", { for: id }, label);
    if (field.optional) name.append(make("span", { class: "optional" }, "optional"));
    return make("div", { class: "field" }, name, input,
      make("p", { class: type === "password" ? "hint" : "hint unseen", id: `${id}-hint` }, field.hint ?? ""),
      make("p", { class: "wrong", id: `${id}-error` }));
  }));
}

function inputs() {
  return [...$("fields").querySelectorAll("input")];
}

function values() {
  return Object.fromEntries(inputs().map((input) => [input.name, input.value]));
}

/** The document to post. Optional fields that are empty are left out. */
function documentOf(typed) {
  const made = {};
  for (const { path, optional } of fieldsOf(chosen.document)) {
    if (optional && typed[path] === "") continue;
    const [name, inner] = path.split(".");
    if (inner) made[name] = { ...made[name], [inner]: typed[path] };
    else made[name] = typed[path];
  }
  return made;
}

function mark(input, text) {
  $(`${input.id}-error`).textContent = text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

/** The errors of a refusal as [field, text], whichever contract's shape it has. */
function errorsOf(body) {
  if (Array.isArray(body.errors) && body.errors.length) {
    return body.errors.map((error) => [error.param ?? error.field ?? "", error.msg ?? error.message]);
  }
  if (body.errors && !Array.isArray(body.errors)) {
    return Object.entries(body.errors).map(([field, error]) => [field, error.msg]);
  }
  return [["", body.common?.msg ?? body.message ?? body.description ?? "The server gave no reason."]];
}

/** Puts every error at its field. A text that belongs to no field may still name one. */
function showErrors(status, body) {
  const fields = inputs();
  const texts = new Map();
  const rest = [];
  for (const [name, text] of errorsOf(body)) {
    const named = fields.find((input) => input.name === name)
      ?? (status < 500 && fields.find((input) => !name && text.toLowerCase().split(/\W+/).includes(input.name)));
    if (named) texts.set(named, [...(texts.get(named) ?? []), text]);
    else rest.push(text);
  }
  fields.forEach((input) => mark(input, (texts.get(input) ?? []).join(" · ")));
  $("wrong").textContent = rest.join(" · ");
  fields.find((input) => texts.has(input))?.focus();
  return texts.size;
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Sends a request and shows what became of it. */
async function send(request) {
  if (sending) return null;
  sending = true;
  form.setAttribute("aria-busy", "true");
  trip.begin();
  try {
    const answer = await exchange.run(request);
    trip.show(answer);
    return answer;
  } catch {
    trip.fail();
    exchange.clear();
    $("wrong").textContent = "No answer: the server cannot be reached.";
    return null;
  } finally {
    sending = false;
    form.removeAttribute("aria-busy");
  }
}

async function signUp(request) {
  inputs().forEach((input) => mark(input, ""));
  $("wrong").textContent = "";
  const answer = await send(request);
  if (answer && answer.status >= 400) showErrors(answer.status, answer.body);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const headers = { "Content-Type": "application/json", "Idempotency-Key": newKey() };
  signUp({ method: "POST", path: chosen.path, headers, body: documentOf(values()) });
});

$("repeat").addEventListener("click", () => signUp(exchange.signup));

$("profile").addEventListener("click", () => {
  send({ method: "GET", path: "/users/profile", headers: { Authorization: `Bearer ${exchange.token}` } });
});

$("example").addEventListener("click", () => {
  const one = newKey().slice(0, 6);
  const example = { firstname: "Ada", lastname: "Lovelace", username: `ada-${one}`,
    email: `ada.${one}@example.com`, password: "Analytical-Engine-1843" };
  for (const input of inputs()) {
    input.value = example[input.name.split(".").pop()] ?? "";
    mark(input, "");
  }
  form.querySelector(".primary").focus();
});

mounts = await (await fetch("/pages/mounts.json")).json();
$("contracts").replaceChildren(...mounts.map(offer));
choose(mounts[0]);
