// The operator's page: asks for the figures every two seconds and draws them.

const $ = (id) => document.getElementById(id);
const EVERY = 2000;
/** Size of a chart; the server tells as many seconds as it is wide. */
const [WIDTH, HEIGHT] = [120, 40];

/** How many were waiting, by the second; this page remembers, the server does not. */
const waiting = [];

function number(value) {
  return value >= 100 ? String(Math.round(value)) : value.toFixed(value && value < 10 ? 1 : 0);
}

function line(points, kind) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", points);
  path.setAttribute("class", kind);
  return path;
}

/** Draws series of values, oldest first, the last at the right edge; null is a gap. */
function draw(chart, top, series) {
  const height = (value) => (HEIGHT - (value / (top || 1)) * (HEIGHT - 2)).toFixed(2);
  const paths = [line(`M0 ${HEIGHT}H${WIDTH}`, "base")];
  for (const [values, kind] of series) {
    const start = WIDTH - values.length + 1;
    let points = "";
    let open = false;
    values.forEach((value, at) => {
      if (value !== null) points += `${open ? "L" : "M"}${start + at} ${height(value)}`;
      open = value !== null;
    });
    if (kind.includes("filled") && values.length) {
      paths.push(line(`${points.replaceAll("M", "L").replace("L", "M")}V${HEIGHT}H${start}Z`, "area"));
    }
    paths.push(line(points, kind));
  }
  chart.replaceChildren(...paths);
}

function highest(values) {
  return values.reduce((top, value) => Math.max(top, value ?? 0), 0);
}

/** Draws, and says beside the picture and instead of it what it shows. */
function chart(id, told, top, series) {
  $(`${id}-told`).textContent = told;
  $(`${id}-chart`).setAttribute("aria-label", told);
  draw($(`${id}-chart`), top, series);
}

function remember(count) {
  const now = Math.floor(Date.now() / 1000);
  const last = waiting.at(-1);
  for (let at = last ? Math.max(last.at + 1, now - WIDTH) : now; at <= now; at += 1) waiting.push({ at, count });
  while (waiting.length > WIDTH) waiting.shift();
}

function part([name, state]) {
  const [item, label, badge, told] = ["li", "b", "span", "span"].map((kind) => document.createElement(kind));
  const up = state === "up";
  label.textContent = name;
  badge.textContent = up ? "up" : "down";
  badge.className = up ? "badge" : "badge failed";
  // Why it is down is not told to everybody.
  told.textContent = state.waitingFor ? `waits for ${state.waitingFor}` : "";
  item.append(label, badge, told);
  return item;
}

function show(status) {
  const { seconds, minute } = status;
  const recent = seconds.registered.slice(-10);
  $("rate").textContent = number(recent.reduce((sum, one) => sum + one, 0) / recent.length);
  $("p50").textContent = minute.p50 === null ? "–" : number(minute.p50);
  $("p95").textContent = minute.p95 === null ? "–" : number(minute.p95);
  $("waiting").textContent = status.waiting;
  $("wait").textContent = status.waitMs > 0 ? `${number(status.waitMs / 1000)} s to go` : "for a worker";
  $("workers").textContent = status.workers;
  $("capacity").textContent = status.perSecond > 0 ? `can do ${number(status.perSecond)} a second` : "";
  $("workers-card").classList.toggle("alarm", status.workers === 0);
  $("dead").textContent = status.deadLetters ?? "–";
  const none = status.deadLetters === null ? "none kept here" : "";
  $("dead-told").textContent = status.warnings.deadLetters ?? none;
  $("dead-card").classList.toggle("alarm", status.deadLetters > 0);
  $("parts").replaceChildren(...Object.entries(status.parts).map(part));

  const sum = (values) => values.reduce((all, one) => all + one, 0);
  const told = `${sum(seconds.registered)} done, ${sum(seconds.refused)} refused, ${sum(seconds.failed)} failed`;
  const top = Math.max(highest(seconds.registered), highest(seconds.refused), highest(seconds.failed));
  const failures = sum(seconds.failed) ? [[seconds.failed, "bad"]] : [];
  chart("rate", told, top, [[seconds.registered, "filled"], [seconds.refused, "second"], ...failures]);
  const slowest = highest(seconds.p95);
  chart("time", slowest ? `p50 and p95, at most ${number(slowest)} ms` : "no signup in two minutes",
    slowest, [[seconds.p95, "second"], [seconds.p50, "first"]]);
  remember(status.waiting);
  const counts = waiting.map(({ count }) => count);
  chart("waiting", `at most ${highest(counts)}`, highest(counts), [[counts, "filled"]]);
}

/** Whether all is well, said once and again only when it changes: it is read aloud. */
function tell(text, kind) {
  if ($("ready").textContent === text) return;
  $("ready").textContent = text;
  $("ready").className = `badge ${kind}`;
}

async function refresh() {
  try {
    const response = await fetch("/status.json");
    if (!response.ok) throw new Error(response.statusText);
    const status = await response.json();
    show(status);
    tell(status.ready ? "ready" : "not ready", status.ready ? "good" : "failed");
    $("figures").className = "";
  } catch {
    tell("does not answer", "failed");
    $("figures").className = "stale";
  }
}

/** While nobody looks, nobody asks. */
async function again() {
  if (!document.hidden) await refresh();
  setTimeout(again, EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
again();
