// Draws series of figures as lines. The axis next to them is text of the page.

/** Size of a chart; a series has as many seconds as it is wide. */
const [WIDTH, HEIGHT] = [120, 40];
/** Room for the width of the line at the top. */
const MARGIN = 1;

function path(points, kind) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
  element.setAttribute("d", points);
  element.setAttribute("class", kind);
  return element;
}

/** The next of 1, 2, 4, 6, 8, 10, 20 …, so that an axis has round numbers at its top and in its middle. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((factor) => factor * power >= value * (1 - 1e-9));
}

/** Runs of values without a gap, each as [x, y] points. */
function runs(values, place) {
  const found = [];
  let open = false;
  values.forEach((value, at) => {
    if (value === null) {
      open = false;
      return;
    }
    if (!open) found.push([]);
    found.at(-1).push(place(value, at));
    open = true;
  });
  return found;
}

/** Draws series of [values, kind], oldest value first, the last at the right edge; null is a gap. A value
    between two gaps is a dot. A kind with `area` is filled down to the axis. */
export function draw(svg, top, series) {
  const height = (value) => (HEIGHT - (value / top) * (HEIGHT - MARGIN)).toFixed(2);
  const paths = [top, top / 2, 0].map((value) => path(`M0 ${height(value)}H${WIDTH}`, "grid"));
  for (const [values, kind] of series) {
    const start = WIDTH - values.length + 1;
    const found = runs(values, (value, at) => [start + at, height(value)]);
    const name = kind.split(" ")[0];
    for (const run of found) {
      const line = run.map(([x, y]) => `${x} ${y}`).join("L");
      if (run.length === 1) {
        paths.push(path(`M${line}h0.001`, `dot ${name}`));
      } else {
        if (kind.includes("area")) {
          paths.push(path(`M${line}V${HEIGHT}H${run[0][0]}Z`, "area"));
        }
        paths.push(path(`M${line}`, `line ${name}`));
      }
    }
  }
  svg.replaceChildren(...paths);
}
