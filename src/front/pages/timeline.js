// Shows the stages of a signup with the durations of the Server-Timing header. Without that header it shows only the
// duration of the round trip.

const $ = (id) => document.getElementById(id);

/** Duration of the animation in milliseconds; it does not depend on the duration of the signup. */
const ANIMATION = 1400;
/** Shortest time between two stages in milliseconds. */
const STEP = 110;

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** Parses a Server-Timing header into milliseconds by name. */
function timings(header) {
  const found = new Map();
  for (const entry of (header ?? "").split(",")) {
    const [name, ...parameters] = entry.split(";").map((part) => part.trim());
    const duration = parameters.find((parameter) => parameter.startsWith("dur="));
    if (name && duration) found.set(name, Number(duration.slice(4)));
  }
  return found;
}

function milliseconds(value) {
  return value >= 100 ? `${Math.round(value)} ms` : value >= 0.1 ? `${value.toFixed(1)} ms` : "< 0.1 ms";
}

export class Timeline {
  #stages = [...$("stages").children];
  #timers = [];

  /** A request was sent. */
  start() {
    this.#timers.forEach(clearTimeout);
    this.#timers = [];
    for (const stage of this.#stages) {
      stage.className = "";
      stage.querySelector("output").textContent = "–";
    }
    this.#stages[0].className = "busy";
    $("scale").hidden = true;
    $("timeline-summary").textContent = "Waiting for the response …";
  }

  /** No response arrived. */
  fail() {
    this.#stages[0].className = "";
    $("timeline-summary").textContent = "No response arrived.";
  }

  /** A response arrived after `duration` milliseconds. */
  show({ title, headers, duration }) {
    this.#stages[0].className = "";
    const times = timings(headers.get("server-timing"));
    const passed = this.#stages.filter((stage) => times.has(stage.dataset.stage));
    const replayed = headers.has("idempotency-replayed") ? " This repeats the first response; no second user was registered." : "";
    if (!passed.length) {
      $("timeline-summary").textContent = `${title}, round trip ${milliseconds(duration)}.${replayed}`;
      return;
    }
    const total = times.get("total") ?? passed.reduce((sum, { dataset }) => sum + times.get(dataset.stage), 0);
    const stages = passed.length === 1 ? "one stage" : `${passed.length} stages`;
    const hashing = times.has("hash") ? `, ${Math.round((times.get("hash") / total) * 100)} % of it for hashing` : "";
    $("timeline-summary").textContent = `${title}, after ${stages} and ${milliseconds(total)}${hashing}.${replayed}`;
    let sum = 0;
    passed.forEach((stage, index) => {
      const time = times.get(stage.dataset.stage);
      sum += time;
      const at = reducedMotion.matches ? 0 : index * STEP + (total ? (sum / total) * (ANIMATION - STEP * passed.length) : 0);
      this.#timers.push(setTimeout(() => {
        stage.className = "passed";
        stage.querySelector("output").textContent = milliseconds(time);
      }, at));
    });
    this.#showScale(passed, times, total);
  }

  /** Shows the share of each stage in the total. */
  #showScale(passed, times, total) {
    const parts = passed.map((stage) => {
      const part = document.createElement("i");
      part.style.flexGrow = Math.max(times.get(stage.dataset.stage) / (total || 1), 0.004);
      part.dataset.stage = stage.dataset.stage;
      return part;
    });
    $("scale").replaceChildren(...parts);
    $("scale").hidden = false;
  }
}
