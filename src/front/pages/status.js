// The operator's page: fetches the figures every two seconds and draws them.

import { draw, ceiling } from "/pages/chart.js";

const $ = (id) => document.getElementById(id);
const EVERY = 2000;
const MINUTE = 60000;

/** What the badge says in each state of the server. */
const STATES = {
  ready: ["ready", "good"],
  warning: ["ready, with a warning", "warning"],
  failed: ["not ready", "failed"],
};

function number(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(value < 100000 ? 1 : 0)}k`;
  return value >= 100 ? String(Math.round(value)) : String(Number(value.toFixed(value < 10 ? 1 : 0)));
}

/** A figure, or a dash where it is unknown. */
function figure(value) {
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

/** Sets a text only where it changes, so that nothing is laid out or announced again. */
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** Draws series over an axis, with a sentence next to the picture that also stands for it. */
function chart(id, told, top, label, series) {
  say(`${id}-told`, told);
  $(`${id}-chart`).setAttribute("aria-label", told);
  const labels = [label(top), label(top / 2), "0"];
  [...$(`${id}-scale`).children].forEach((item, at) => {
    if (item.textContent !== labels[at]) item.textContent = labels[at];
  });
  draw($(`${id}-chart`), top, series);
}

/** A series, unless all of it is zero: its line would only hide the axis. */
function some(series) {
  return highest(series[0]) > 0 ? [series] : [];
}

/** The top of an axis that counts, with a whole number in its middle. */
function counts(value) {
  return Math.max(2, ceiling(value));
}

function part([name, state]) {
  const [item, label, badge, told] = ["li", "b", "span", "span"].map((kind) => document.createElement(kind));
  const up = state === "up";
  label.textContent = name;
  badge.textContent = up ? "up" : "down";
  badge.className = up ? "badge" : "badge failed";
  // Only operators are shown why it is down.
  told.textContent = state.reason ? `waits for ${state.reason}` : "";
  item.append(label, badge, told);
  return item;
}

function showSignups({ seconds, minute, ...status }) {
  const recent = seconds.registered.slice(-10);
  say("rate", number(sum(recent) / recent.length));
  say("p50", figure(minute.p50));
  say("p95", figure(minute.p95));
  say("waiting", figure(status.waiting));
  say("wait", status.waitMs > 0 ? `${milliseconds(status.waitMs)} to go` : "for a worker");
  say("workers", figure(status.workers));
  say("capacity", status.perSecond > 0 ? `up to ${number(status.perSecond)}/s` : "rate unknown");
  $("workers-card").classList.toggle("warning", status.workers === 0);

  const perSecond = (value) => `${number(value)}/s`;
  chart("rate",
    `${sum(seconds.registered)} done, ${sum(seconds.refused)} refused, ${sum(seconds.failed)} failed in two minutes`,
    counts(highest(seconds.registered, seconds.refused, seconds.failed)), perSecond,
    [[seconds.registered, "done area"], ...some([seconds.refused, "refused"]), ...some([seconds.failed, "failed"])]);
  const slowest = highest(seconds.p95);
  chart("time", slowest ? `p50 and p95, at most ${milliseconds(slowest)}` : "no signup in two minutes",
    slowest ? ceiling(slowest) : 100, milliseconds, [[seconds.p95, "p95"], [seconds.p50, "p50"]]);
  chart("waiting", `at most ${number(highest(seconds.waiting))} in two minutes`,
    counts(highest(seconds.waiting)), number, [[seconds.waiting, "waiting area"]]);
}

/** What happens to bulk rows, in one sentence. */
function bulkSentence({ isActive, uploads, workers }) {
  if (!isActive) return "No bulk rows wait.";
  const sent = ["Under way", "One upload to this front"][uploads] ?? `${uploads} uploads to this front`;
  const names = ["no worker", "one worker"];
  return workers === null ? `${sent}.` : `${sent}; ${names[workers] ?? `${workers} workers`}.`;
}

function showBulk({ bulk, seconds, deadLetters, warnings }) {
  say("bulk-told", bulkSentence(bulk));
  say("bulk-ready", figure(bulk.ready));
  say("bulk-rate", bulk.isActive || bulk.perSecond !== null ? figure(bulk.perSecond) : "0");
  const unknown = bulk.isActive && bulk.perSecond === null;
  say("bulk-rate-told", unknown ? "unknown here" : "rows/s");
  say("bulk-left", bulk.leftMs ? duration(bulk.leftMs) : "–");
  say("retrying", figure(bulk.retrying));
  $("retrying-card").classList.toggle("warning", bulk.retrying > 0);
  say("dead", figure(deadLetters));
  const kept = deadLetters === null ? "none kept here" : deadLetters ? "muster dead list" : "none";
  say("dead-told", warnings.deadLetters ? "no room left" : kept);
  $("dead-card").classList.toggle("warning", deadLetters > 0);

  const perSecond = (value) => `${number(value)}/s`;
  chart("bulk-rows", `${sum(seconds.bulkRows)} finished in two minutes`,
    counts(highest(seconds.bulkRows)), perSecond, [[seconds.bulkRows, "done area"]]);
  chart("backlog", `at most ${number(highest(seconds.bulkReady))} ready, ${number(highest(seconds.bulkRetrying))} to retry`,
    counts(highest(seconds.bulkReady, seconds.bulkRetrying)), number,
    [[seconds.bulkReady, "waiting area"], ...some([seconds.bulkRetrying, "retrying"])]);
}

/** The badge and the reasons change only with the state: they are read aloud. */
function showState(text, kind, reasons) {
  say("ready", text);
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
    $("parts").replaceChildren(...Object.entries(status.parts).map(part));
    const [text, kind] = STATES[status.state];
    const reasons = status.reasons.length ? status.reasons : ["Every part works, and nothing needs attention."];
    showState(status.ready ? text : "not ready", kind, reasons);
    $("figures").className = "";
  } catch {
    showState("does not answer", "failed", ["The server cannot be reached; the figures are the last ones received."]);
    $("figures").className = "stale";
  }
}

/** Nothing is fetched while the page is hidden. */
async function again() {
  if (!document.hidden) await refresh();
  setTimeout(again, EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
again();
