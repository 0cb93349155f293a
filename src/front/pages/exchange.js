// One request and its answer: sends it, and shows both, the password masked, the token read.

const $ = (id) => document.getElementById(id);

/** Headers of an answer that say something about it. */
const WORTH_SEEING = [
  "content-type", "idempotency-key", "idempotency-replayed", "retry-after", "www-authenticate", "server-timing",
];

const MASK = "••••••••";

/** A definition list from [name, value] pairs. */
function define(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => {
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, detail.textContent] = [name, value];
    return [term, detail];
  }));
}

/** JSON with its keys and values marked, as nodes: nothing from a server is read as HTML. */
function coloured(value) {
  const text = JSON.stringify(value, null, 2);
  const nodes = [];
  let end = 0;
  for (const { 0: part, 1: key, index } of text.matchAll(/("(?:[^"\\]|\\.)*")(?=:)|"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|true|false|null/g)) {
    const span = document.createElement("span");
    span.className = key ? "key" : part.startsWith('"') ? "string" : "literal";
    span.textContent = part;
    nodes.push(text.slice(end, index), span);
    end = index + part.length;
  }
  return [...nodes, text.slice(end)];
}

/** A part of a token, which is base64url of UTF-8. */
function decoded(part) {
  const bytes = Uint8Array.from(atob(part.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}

/** A claim for people: times as dates besides. */
function claim([name, value]) {
  const isTime = ["iat", "exp", "nbf"].includes(name);
  return [name, isTime ? `${value} (${new Date(value * 1000).toLocaleString()})` : String(value)];
}

/** A body: JSON, or else its text, as a proxy between may answer. */
function read(text) {
  try {
    return text ? JSON.parse(text) : {};
  } catch {
    return text;
  }
}

export class Exchange {
  /** The last registration sent. */
  signup = null;
  /** The last token received. */
  token = null;
  #shown = null;
  #revealed = false;

  constructor() {
    $("reveal").addEventListener("click", () => {
      this.#revealed = !this.#revealed;
      this.#showRequest();
    });
  }

  /** Sends a request and shows both. The answer's times are in milliseconds. */
  async run(request) {
    this.#shown = request;
    if (request.body) {
      this.signup = request;
      this.token = null;
    }
    this.#showRequest();
    const began = performance.now();
    const response = await fetch(request.path, {
      method: request.method,
      headers: request.headers,
      body: request.body && JSON.stringify(request.body),
    });
    const text = await response.text();
    const answer = {
      status: response.status,
      title: `${response.status} ${response.statusText}`.trim(),
      headers: response.headers,
      body: read(text),
      took: performance.now() - began,
    };
    this.#showAnswer(answer);
    return answer;
  }

  /** Shows no answer: the one there was belongs to another request. */
  clear() {
    for (const id of ["status", "answer", "token", "profile"]) $(id).hidden = true;
    $("answer-empty").hidden = false;
  }

  #showRequest() {
    const { method, path, headers, body } = this.#shown;
    const shownBody = body && { ...body, password: this.#revealed ? body.password : MASK };
    const bearer = headers.Authorization && { Authorization: "Bearer <the token>" };
    $("request").hidden = false;
    define($("request-headers"), [[method, path], ...Object.entries({ ...headers, ...bearer })]);
    $("request-body").replaceChildren(...(body ? coloured(shownBody) : []));
    $("request-body").parentElement.hidden = !body;
    $("reveal").hidden = !body;
    $("reveal").setAttribute("aria-pressed", this.#revealed);
  }

  #showAnswer({ status, title, headers, body }) {
    const badge = $("status");
    badge.textContent = title;
    badge.className = `badge ${status < 400 ? "good" : status < 500 ? "refused" : "failed"}`;
    badge.hidden = false;
    $("answer-empty").hidden = true;
    $("answer").hidden = false;
    const worth = WORTH_SEEING.filter((name) => headers.has(name));
    define($("answer-headers"), worth.map((name) => [name, headers.get(name)]));
    $("answer-body").replaceChildren(...coloured(body));
    const token = body.token ?? body.data?.token;
    if (token) this.#readToken(token);
    $("token").hidden = !this.token;
    $("profile").hidden = !this.token;
  }

  #readToken(token) {
    this.token = token;
    const [header, claims] = token.split(".").slice(0, 2).map(decoded);
    const shown = [["alg", header.alg], ...(header.kid ? [["kid", header.kid]] : []), ...Object.entries(claims).map(claim)];
    define($("claims"), shown);
  }
}
