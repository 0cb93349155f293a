// The sign-up page: lists the mounted contracts, sends the form, and shows request and response. Only the server
// validates the fields.

import { Exchange } from "/pages/exchange.js";
import { Timeline } from "/pages/timeline.js";

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
const timeline = new Timeline();
let mounts = [];
let selected = null;
let sending = false;

/** Creates an element: `create("label", { for: "x" }, "Text", child)`. */
function create(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The fields of a document's schema in the order of FIELDS; nested fields have dotted names. */
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

function contractOption(mount, index) {
  const id = `contract-${mount.contract}-${index}`;
  const radio = create("input", { type: "radio", name: "contract", id, value: index });
  radio.checked = index === 0;
  radio.addEventListener("change", () => select(mount));
  const path = create("code", {}, `POST ${mount.anyPrefix ? "…" : ""}${mount.path}`);
  return create("label", { for: id }, radio, create("b", {}, mount.contract), path);
}

/** Shows the fields of a mount. Fields with the same name keep their values. */
function select(mount) {
  const previous = values();
  selected = mount;
  $("form-error").textContent = "";
  $("fields").replaceChildren(...fieldsOf(mount.document).map((field) => {
    const { label, complete, type = "text" } = FIELDS[field.path] ?? { label: field.path };
    const id = `field-${field.path}`;
    const input = create("input", {
      id, type, name: field.path, autocomplete: complete ?? "off", autocapitalize: "none",
      spellcheck: "false", "aria-describedby": `${id}-hint ${id}-error`,
    });
    if (!field.optional) input.setAttribute("aria-required", "true");
    input.value = previous[field.path] ?? previous[field.path.split(".").pop()] ?? previous[`fullname.${field.path}`] ?? "";
    input.addEventListener("input", () => showError(input, ""));
    const name = create("label", { for: id }, label);
    if (field.optional) name.append(create("span", { class: "optional" }, "optional"));
    return create("div", { class: "field" }, name, input,
      create("p", { class: type === "password" ? "hint" : "hint visually-hidden", id: `${id}-hint` }, field.hint ?? ""),
      create("p", { class: "error", id: `${id}-error` }));
  }));
}

function inputs() {
  return [...$("fields").querySelectorAll("input")];
}

function values() {
  return Object.fromEntries(inputs().map((input) => [input.name, input.value]));
}

/** The document to send, without empty optional fields. */
function documentOf(input) {
  const result = {};
  for (const { path, optional } of fieldsOf(selected.document)) {
    if (optional && input[path] === "") continue;
    const [name, inner] = path.split(".");
    if (inner) result[name] = { ...result[name], [inner]: input[path] };
    else result[name] = input[path];
  }
  return result;
}

function showError(input, text) {
  $(`${input.id}-error`).textContent = text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

/** The errors of a response as [field, text], for the response shapes of all contracts. */
function errorsOf(body) {
  if (Array.isArray(body.errors) && body.errors.length) {
    return body.errors.map((error) => [error.param ?? error.field ?? "", error.msg ?? error.message]);
  }
  if (body.errors && !Array.isArray(body.errors)) {
    return Object.entries(body.errors).map(([field, error]) => [field, error.msg]);
  }
  return [["", body.common?.msg ?? body.message ?? body.description ?? "The server gave no reason."]];
}

/** Shows every error at its field. An error without a field is shown at a field that its text names, if any. */
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
  fields.forEach((input) => showError(input, (texts.get(input) ?? []).join(" · ")));
  $("form-error").textContent = rest.join(" · ");
  fields.find((input) => texts.has(input))?.focus();
  return texts.size;
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Sends a request and shows the response. */
async function send(request) {
  if (sending) return null;
  sending = true;
  form.setAttribute("aria-busy", "true");
  timeline.start();
  try {
    const response = await exchange.run(request);
    timeline.show(response);
    return response;
  } catch {
    timeline.fail();
    exchange.clear();
    $("form-error").textContent = "No response: the server cannot be reached.";
    return null;
  } finally {
    sending = false;
    form.removeAttribute("aria-busy");
  }
}

async function signUp(request) {
  inputs().forEach((input) => showError(input, ""));
  $("form-error").textContent = "";
  const response = await send(request);
  if (response && response.status >= 400) showErrors(response.status, response.body);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const headers = { "Content-Type": "application/json", "Idempotency-Key": newKey() };
  signUp({ method: "POST", path: selected.path, headers, body: documentOf(values()) });
});

$("repeat").addEventListener("click", () => signUp(exchange.signup));

$("profile").addEventListener("click", () => {
  send({ method: "GET", path: "/users/profile", headers: { Authorization: `Bearer ${exchange.token}` } });
});

$("example").addEventListener("click", () => {
  const suffix = newKey().slice(0, 6);
  const example = { firstname: "Ada", lastname: "Lovelace", username: `ada-${suffix}`,
    email: `ada.${suffix}@example.com`, password: "Analytical-Engine-1843" };
  for (const input of inputs()) {
    input.value = example[input.name.split(".").pop()] ?? "";
    showError(input, "");
  }
  form.querySelector(".primary").focus();
});

mounts = await (await fetch("/pages/mounts.json")).json();
$("contracts").replaceChildren(...mounts.map(contractOption));
select(mounts[0]);
