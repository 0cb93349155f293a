// Draws line charts as SVG. The axis labels are part of the page.

/** Size of the view box. The width is the number of seconds of a series. */
const [WIDTH, HEIGHT] = [120, 40];
/** Space at the top for the line width. */
const MARGIN = 1;

function path(points, kind) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
  element.setAttribute("d", points);
  element.setAttribute("class", kind);
  return element;
}

/** Rounds up to 1, 2, 4, 6, 8, 10, 20 and so on, so that the axis has round numbers at its top and middle. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((factor) => factor * power >= value * (1 - 1e-9));
}

/** Splits values at gaps into lists of [x, y] points. */
function segments(values, toPoint) {
  const result = [];
  let open = false;
  values.forEach((value, at) => {
    if (value === null) {
      open = false;
      return;
    }
    if (!open) result.push([]);
    result.at(-1).push(toPoint(value, at));
    open = true;
  });
  return result;
}

/** Draws series of [values, kind]. The last value is the newest and is at the right edge; null is a gap, and a value
    between two gaps is a dot. The area below a kind with `area` is filled. */
export function draw(svg, top, series) {
  const height = (value) => (HEIGHT - (value / top) * (HEIGHT - MARGIN)).toFixed(2);
  const paths = [top, top / 2, 0].map((value) => path(`M0 ${height(value)}H${WIDTH}`, "grid"));
  for (const [values, kind] of series) {
    const start = WIDTH - values.length + 1;
    const runs = segments(values, (value, at) => [start + at, height(value)]);
    const name = kind.split(" ")[0];
    for (const run of runs) {
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
