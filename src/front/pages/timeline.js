// The way of a signup through the queue, station by station, with the times the server tells in
// Server-Timing. Without that header it tells how long the round trip took, and lights nothing.

const $ = (id) => document.getElementById(id);

/** How long the picture takes to light up, in milliseconds, whatever the signup took. */
const SHOW_FOR = 1400;
/** Between two stations at the least. */
const STEP = 110;

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Milliseconds by name, from a Server-Timing header. */
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

export class Trip {
  #stations = [...$("stations").children];
  #timers = [];

  /** Something has been sent. */
  begin() {
    this.#timers.forEach(clearTimeout);
    this.#timers = [];
    for (const station of this.#stations) {
      station.className = "";
      station.querySelector("output").textContent = "–";
    }
    this.#stations[0].className = "busy";
    $("scale").hidden = true;
    $("trip-told").textContent = "On its way …";
  }

  /** Nothing came back. */
  fail() {
    this.#stations[0].className = "";
    $("trip-told").textContent = "No answer came back.";
  }

  /** An answer came. */
  show({ title, headers, took }) {
    this.#stations[0].className = "";
    const times = timings(headers.get("server-timing"));
    const passed = this.#stations.filter((station) => times.has(station.dataset.stage));
    const replayed = headers.has("idempotency-replayed") ? " It is the first answer again: nobody was registered twice." : "";
    if (!passed.length) {
      $("trip-told").textContent = `${title}, in ${milliseconds(took)} there and back.${replayed}`;
      return;
    }
    const total = times.get("total") ?? passed.reduce((sum, { dataset }) => sum + times.get(dataset.stage), 0);
    const stages = passed.length === 1 ? "one station" : `${passed.length} stations`;
    const hashing = times.has("hash") ? `, ${Math.round((times.get("hash") / total) * 100)} % of it hashing` : "";
    $("trip-told").textContent = `${title}, after ${stages} and ${milliseconds(total)}${hashing}.${replayed}`;
    let sum = 0;
    passed.forEach((station, index) => {
      const time = times.get(station.dataset.stage);
      sum += time;
      const at = calm.matches ? 0 : index * STEP + (total ? (sum / total) * (SHOW_FOR - STEP * passed.length) : 0);
      this.#timers.push(setTimeout(() => {
        station.className = "passed";
        station.querySelector("output").textContent = milliseconds(time);
      }, at));
    });
    this.#showScale(passed, times, total);
  }

  /** The same times as parts of a line. */
  #showScale(passed, times, total) {
    const parts = passed.map((station) => {
      const part = document.createElement("i");
      part.style.flexGrow = Math.max(times.get(station.dataset.stage) / (total || 1), 0.004);
      part.dataset.stage = station.dataset.stage;
      return part;
    });
    $("scale").replaceChildren(...parts);
    $("scale").hidden = false;
  }
}
