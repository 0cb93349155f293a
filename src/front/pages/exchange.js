// Sends a request and shows it with its response: the password is masked and the token is decoded.

const $ = (id) => document.getElementById(id);

/** The response headers that are shown. */
const SHOWN_HEADERS = [
  "content-type", "idempotency-key", "idempotency-replayed", "retry-after", "www-authenticate", "server-timing",
];

const MASK = "••••••••";

/** Fills a definition list from [name, value] pairs. */
function fillList(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => {
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, detail.textContent] = [name, value];
    return [term, detail];
  }));
}

/** Formats JSON as DOM nodes with syntax colours. No value is parsed as HTML. */
function formatJson(value) {
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

/** Decodes a part of a token, which is base64url of UTF-8 JSON. */
function decodePart(part) {
  const bytes = Uint8Array.from(atob(part.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}

/** Formats a claim; times get a readable date. */
function formatClaim([name, value]) {
  const isTime = ["iat", "exp", "nbf"].includes(name);
  return [name, isTime ? `${value} (${new Date(value * 1000).toLocaleString()})` : String(value)];
}

/** Parses a body as JSON. Other bodies, for example from a proxy, are returned as text. */
function parseBody(text) {
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

  /** Sends a request and shows it with its response. `duration` is in milliseconds. */
  async run(request) {
    this.#shown = request;
    if (request.body) {
      this.signup = request;
      this.token = null;
    }
    this.#showRequest();
    const startedAt = performance.now();
    const response = await fetch(request.path, {
      method: request.method,
      headers: request.headers,
      body: request.body && JSON.stringify(request.body),
    });
    const text = await response.text();
    const result = {
      status: response.status,
      title: `${response.status} ${response.statusText}`.trim(),
      headers: response.headers,
      body: parseBody(text),
      duration: performance.now() - startedAt,
    };
    this.#showResponse(result);
    return result;
  }

  /** Removes the shown response, which belongs to an earlier request. */
  clear() {
    for (const id of ["status", "response", "token", "profile"]) $(id).hidden = true;
    $("response-empty").hidden = false;
  }

  #showRequest() {
    const { method, path, headers, body } = this.#shown;
    const shownBody = body && { ...body, password: this.#revealed ? body.password : MASK };
    const bearer = headers.Authorization && { Authorization: "Bearer <token>" };
    $("request").hidden = false;
    fillList($("request-headers"), [[method, path], ...Object.entries({ ...headers, ...bearer })]);
    $("request-body").replaceChildren(...(body ? formatJson(shownBody) : []));
    $("request-body").parentElement.hidden = !body;
    $("reveal").hidden = !body;
    $("reveal").setAttribute("aria-pressed", this.#revealed);
  }

  #showResponse({ status, title, headers, body }) {
    const badge = $("status");
    badge.textContent = title;
    badge.className = `badge ${status < 400 ? "good" : status < 500 ? "rejected" : "failed"}`;
    badge.hidden = false;
    $("response-empty").hidden = true;
    $("response").hidden = false;
    const shown = SHOWN_HEADERS.filter((name) => headers.has(name));
    fillList($("response-headers"), shown.map((name) => [name, headers.get(name)]));
    $("response-body").replaceChildren(...formatJson(body));
    const token = body.token ?? body.data?.token;
    if (token) this.#readToken(token);
    $("token").hidden = !this.token;
    $("profile").hidden = !this.token;
  }

  #readToken(token) {
    this.token = token;
    const [header, claims] = token.split(".").slice(0, 2).map(decodePart);
    const shown = [["alg", header.alg], ...(header.kid ? [["kid", header.kid]] : []), ...Object.entries(claims).map(formatClaim)];
    fillList($("claims"), shown);
  }
}
