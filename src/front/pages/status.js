// The status page: fetches /status.json every two seconds and shows it.

import { draw, ceiling } from "/pages/chart.js";

const $ = (id) => document.getElementById(id);
/** Milliseconds between two requests. */
const INTERVAL = 2000;
const MINUTE = 60000;

/** Text and CSS class of the badge for each state of the server. */
const STATES = {
  ready: ["ready", "good"],
  warning: ["ready, with a warning", "warning"],
  failed: ["not ready", "failed"],
};

function number(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(value < 100000 ? 1 : 0)}k`;
  return value >= 100 ? String(Math.round(value)) : String(Number(value.toFixed(value < 10 ? 1 : 0)));
}

/** Formats a value; a dash stands for an unknown one. */
function valueOrDash(value) {
  return value === null || value === undefined ? "–" : number(value);
}

function milliseconds(value) {
  return value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

function duration(value) {
  if (value < MINUTE) return `${Math.ceil(value / 1000)} s`;
  const minutes = Math.round(value / MINUTE);
  return minutes < 120 ? `${minutes} min` : `${number(minutes / 60)} h`;
}

function sum(values) {
  return values.reduce((all, one) => all + (one ?? 0), 0);
}

function highest(...series) {
  return series.flat().reduce((top, value) => Math.max(top, value ?? 0), 0);
}

/** Sets a text only if it changed, so that the browser lays out and announces nothing twice. */
function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** Draws a chart with a summary, which is also its text alternative. */
function chart(id, summary, top, label, series) {
  setText(`${id}-summary`, summary);
  $(`${id}-chart`).setAttribute("aria-label", summary);
  const labels = [label(top), label(top / 2), "0"];
  [...$(`${id}-scale`).children].forEach((item, at) => {
    if (item.textContent !== labels[at]) item.textContent = labels[at];
  });
  draw($(`${id}-chart`), top, series);
}

/** A list with the series, or an empty one if all values are zero: a line at zero would hide the axis. */
function ifNonZero(series) {
  return highest(series[0]) > 0 ? [series] : [];
}

/** The upper end of an axis for counts. Half of it is a whole number. */
function countCeiling(value) {
  return Math.max(2, ceiling(value));
}

function componentItem([name, state]) {
  const [item, label, badge, reason] = ["li", "b", "span", "span"].map((kind) => document.createElement(kind));
  const up = state === "up";
  label.textContent = name;
  badge.textContent = up ? "up" : "down";
  badge.className = up ? "badge" : "badge failed";
  // Only operators get the reason.
  reason.textContent = state.reason ?? "";
  item.append(label, badge, reason);
  return item;
}

function showSignups({ seconds, minute, ...status }) {
  const recent = seconds.registered.slice(-10);
  setText("rate", number(sum(recent) / recent.length));
  setText("p50", valueOrDash(minute.p50));
  setText("p95", valueOrDash(minute.p95));
  setText("queued", valueOrDash(status.queued));
  setText("estimated-wait", status.estimatedWaitMs > 0 ? `about ${milliseconds(status.estimatedWaitMs)} to wait` : "wait for a worker");
  setText("workers", valueOrDash(status.workers));
  setText("capacity", status.perSecond > 0 ? `up to ${number(status.perSecond)}/s` : "rate unknown");
  $("workers-card").classList.toggle("warning", status.workers === 0);

  const perSecond = (value) => `${number(value)}/s`;
  chart("rate",
    `${sum(seconds.registered)} done, ${sum(seconds.rejected)} rejected, ${sum(seconds.failed)} failed in two minutes`,
    countCeiling(highest(seconds.registered, seconds.rejected, seconds.failed)), perSecond,
    [[seconds.registered, "done area"], ...ifNonZero([seconds.rejected, "rejected"]), ...ifNonZero([seconds.failed, "failed"])]);
  const slowest = highest(seconds.p95);
  chart("time", slowest ? `p50 and p95, at most ${milliseconds(slowest)}` : "no signup in two minutes",
    slowest ? ceiling(slowest) : 100, milliseconds, [[seconds.p95, "p95"], [seconds.p50, "p50"]]);
  chart("queued", `at most ${number(highest(seconds.queued))} in two minutes`,
    countCeiling(highest(seconds.queued)), number, [[seconds.queued, "queued area"]]);
}

/** Summarizes the bulk rows in one sentence. */
function bulkSentence({ isActive, uploads, workers }) {
  if (!isActive) return "No bulk rows are queued.";
  const sent = ["In progress", "One upload to this front"][uploads] ?? `${uploads} uploads to this front`;
  const names = ["no worker", "one worker"];
  return workers === null ? `${sent}.` : `${sent}; ${names[workers] ?? `${workers} workers`}.`;
}

function showBulk({ bulk, seconds, deadLetters, warnings }) {
  setText("bulk-summary", bulkSentence(bulk));
  setText("bulk-ready", valueOrDash(bulk.ready));
  setText("bulk-rate", bulk.isActive || bulk.perSecond !== null ? valueOrDash(bulk.perSecond) : "0");
  const unknown = bulk.isActive && bulk.perSecond === null;
  setText("bulk-rate-summary", unknown ? "unknown here" : "rows/s");
  setText("bulk-remaining", bulk.remainingMs ? duration(bulk.remainingMs) : "–");
  setText("retrying", valueOrDash(bulk.retrying));
  $("retrying-card").classList.toggle("warning", bulk.retrying > 0);
  setText("dead-letters", valueOrDash(deadLetters));
  const hint = deadLetters === null ? "not available" : deadLetters ? "muster dead-letters list" : "none";
  setText("dead-letters-summary", warnings.deadLetters ? "queue is full" : hint);
  $("dead-letters-card").classList.toggle("warning", deadLetters > 0);

  const perSecond = (value) => `${number(value)}/s`;
  chart("bulk-rows", `${sum(seconds.bulkRows)} finished in two minutes`,
    countCeiling(highest(seconds.bulkRows)), perSecond, [[seconds.bulkRows, "done area"]]);
  chart("backlog", `at most ${number(highest(seconds.bulkReady))} ready, ${number(highest(seconds.bulkRetrying))} to retry`,
    countCeiling(highest(seconds.bulkReady, seconds.bulkRetrying)), number,
    [[seconds.bulkReady, "queued area"], ...ifNonZero([seconds.bulkRetrying, "retrying"])]);
}

/** Shows the badge and the reasons. Unchanged ones are left alone, because screen readers announce changes. */
function showState(text, kind, reasons) {
  setText("ready", text);
  $("ready").className = `badge ${kind}`;
  $("state").className = `card state ${kind}`;
  document.title = `${kind === "good" ? "Status" : `${text} · Status`} · muster`;
  const shown = [...$("reasons").children].map((item) => item.textContent);
  if (shown.join("\n") === reasons.join("\n")) return;
  $("reasons").replaceChildren(...reasons.map((reason) => {
    const item = document.createElement("li");
    item.textContent = reason;
    return item;
  }));
}

async function refresh() {
  try {
    const response = await fetch("/status.json");
    if (!response.ok) throw new Error(response.statusText);
    const status = await response.json();
    showSignups(status);
    showBulk(status);
    $("components").replaceChildren(...Object.entries(status.components).map(componentItem));
    const [text, kind] = STATES[status.state];
    const reasons = status.reasons.length ? status.reasons : ["Every component is up, and nothing needs attention."];
    showState(status.ready ? text : "not ready", kind, reasons);
    $("figures").className = "";
  } catch {
    showState("no response", "failed", ["The server cannot be reached. The values are the last ones received."]);
    $("figures").className = "stale";
  }
}

/** Nothing is fetched while the page is hidden. */
async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, INTERVAL);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
poll();
