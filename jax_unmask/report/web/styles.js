// How series look: the same series looks alike in all panels of a section.
const LINE_SHAPES = ["circle", "square", "up", "down", "diamond", "left", "right"];
const POINT_SHAPES = ["star", "plus", "cross", "hexagon", "thin", "bar", "up"];
const DASHES = ["", "7 4", "2 3", "8 3 2 3"];
const COLOURS = 7;

function seriesStyles(series) {
  let lines = 0, points = 0;
  return series.map((one) => {
    // Heuristics have the same colour in every page; lines of training runs are counted.
    const k = one.learned ? points++ : one.colour ?? lines;
    const turn = one.learned || one.colour === undefined ? Math.floor(k / COLOURS) : Math.floor(lines / COLOURS);
    if (!one.learned) lines++;
    if (one.learned) {
      return {
        // Learned policies start from the other end of the palette.
        colour: `var(--s${(COLOURS - 2 - (k % (COLOURS - 1)) + COLOURS) % COLOURS})`,
        shape: POINT_SHAPES[(k + turn) % POINT_SHAPES.length], dash: "1 4", size: 7.5,
      };
    }
    return {
      colour: one.rule ? "var(--rule)" : `var(--s${k % COLOURS})`,
      shape: LINE_SHAPES[(k + turn) % LINE_SHAPES.length],
      dash: DASHES[(k + turn) % DASHES.length], size: 4,
    };
  });
}

const polygon = (corners, turn, inner = 1) => (x, y, r) => {
  const points = [];
  for (let k = 0; k < corners; k++) {
    const angle = turn + (2 * Math.PI * k) / corners, radius = k % 2 ? r * inner : r;
    points.push(`${(x + radius * Math.cos(angle)).toFixed(2)},${(y + radius * Math.sin(angle)).toFixed(2)}`);
  }
  return `M${points.join("L")}Z`;
};
const UP = -Math.PI / 2;
const cross = (turn) => (x, y, r) => {
  const w = r * 0.36, path = [[-w, -r], [w, -r], [w, -w], [r, -w], [r, w], [w, w], [w, r], [-w, r], [-w, w], [-r, w], [-r, -w], [-w, -w]];
  const c = Math.cos(turn), s = Math.sin(turn);
  return `M${path.map(([a, b]) => `${(x + a * c - b * s).toFixed(2)},${(y + a * s + b * c).toFixed(2)}`).join("L")}Z`;
};
const SHAPES = {
  circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0Z`,
  square: polygon(4, Math.PI / 4), diamond: polygon(4, 0),
  up: polygon(3, UP), down: polygon(3, -UP), left: polygon(3, Math.PI), right: polygon(3, 0),
  star: polygon(10, UP, 0.45), hexagon: polygon(6, UP), thin: polygon(4, UP, 0.55),
  plus: cross(0), cross: cross(Math.PI / 4),
  bar: (x, y, r) => `M${x - r},${y - r * 0.45}h${2 * r}v${r * 0.9}h${-2 * r}Z`,
};

function marker(style, x, y, learned) {
  return svg("path", {
    d: SHAPES[style.shape](x, y, style.size), fill: style.colour,
    stroke: learned ? "var(--ink)" : "var(--paper)", "stroke-width": learned ? 1 : 0.7,
  });
}

/** The key of a series in a legend. */
function swatch(style, learned) {
  return svg("svg", { viewBox: "0 0 30 16", "aria-hidden": "true" },
    learned ? null : svg("line", { x1: 0, x2: 30, y1: 8, y2: 8, stroke: style.colour, "stroke-width": 2, "stroke-dasharray": style.dash }),
    marker(style, 15, 8, learned));
}
