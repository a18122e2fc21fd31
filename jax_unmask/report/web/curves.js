// Training curves: one small chart per metric, all runs in it.
function curvesSection(runs) {
  const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))];
  const first = ["reward", "accuracy", "nfe", "loss"].filter((name) => metrics.includes(name));
  const ordered = [...first, ...metrics.filter((name) => !first.includes(name))];
  const styles = seriesStyles(runs.map(() => ({ learned: false })));
  const state = { smooth: true, hidden: new Set() };
  const redraw = [];
  const update = () => redraw.forEach((draw) => draw());
  const legend = el("div", { class: "legend" }, runs.map((run, k) => {
    const button = toggle("", true, (on) => {
      if (on) state.hidden.delete(run);
      else state.hidden.add(run);
      update();
    });
    button.append(swatch(styles[k], false), run.name);
    return button;
  }));
  const chart = (name) => {
    const root = svg("svg", { role: "img", "aria-label": `Training curve of ${name}` });
    redraw.push(drawn(root, (width) => drawCurve(root, width, name, runs, styles, state)));
    root.addEventListener("pointermove", (event) => curveText(root, event, name, runs, state));
    root.addEventListener("pointerleave", () => tooltip.hide());
    return el("figure", {}, el("figcaption", {}, name.replaceAll("_", " ")), root, el("div", { class: "bar tools" }, pictureButtons(root, name)));
  };
  const shown = ordered.slice(0, Math.max(first.length, 2)), rest = ordered.slice(shown.length);
  const isLong = runs.some((run) => run.steps.length >= LEAST_TO_SMOOTH);
  return el("div", { class: "curves" },
    el("div", { class: "bar" }, isLong ? toggle("smooth", true, (on) => { state.smooth = on; update(); }) : null,
      download("CSV", () => ["training.csv", new Blob([curvesCsv(runs, ordered)], { type: "text/csv" })])),
    runs.length > 1 ? legend : null, el("div", { class: "panels" }, shown.map(chart)),
    rest.length ? el("details", {}, el("summary", {}, `${rest.length} further metrics`), el("div", { class: "panels" }, rest.map(chart))) : null);
}

/** Of fewer points every one is drawn as it is. */
const LEAST_TO_SMOOTH = 30;

/** Means over a window of a twelfth of the run, of three to 31 values; gaps stay gaps. */
function smoothed(values) {
  const half = Math.min(Math.max(Math.round(values.length / 24), 1), 15);
  return values.map((value, k) => {
    if (value === null) return null;
    const near = values.slice(Math.max(k - half, 0), k + half + 1).filter((other) => other !== null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

function curvesCsv(runs, names) {
  const rows = runs.flatMap((run) => run.steps.map((step, k) => [`"${run.name.replaceAll('"', '""')}"`, step, ...names.map((name) => run.metrics[name]?.[k] ?? "")]));
  return [["run", "step", ...names], ...rows].map((row) => `${row.join(",")}\n`).join("");
}

function drawCurve(root, width, name, runs, styles, state) {
  const height = 220, at = { left: 52, right: width - 10, top: 8, bottom: height - 38 };
  fill(root, { viewBox: `0 0 ${width} ${height}`, height }, []).replaceChildren();
  const lines = runs.map((run, k) => ({ run, style: styles[k], values: run.metrics[name] }))
    .filter(({ run, values }) => values && !state.hidden.has(run))
    .flatMap((line) => state.smooth && line.values.filter((one) => one !== null).length >= LEAST_TO_SMOOTH
      ? [{ ...line, opacity: 0.25 }, { ...line, values: smoothed(line.values) }] : [line]);
  const all = lines.flatMap((line) => line.values).filter((one) => one !== null);
  if (!all.length) return;
  const low = Math.min(...all), high = Math.max(...all), pad = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
  const steps = lines.flatMap((line) => line.run.steps), last = Math.max(...steps);
  const x = scale(0, last, at.left, at.right), y = scale(low - pad, high + pad, at.bottom, at.top);
  axes(root, at, { x, y, xTicks: ticks(0, last, width / 90), yTicks: ticks(low, high, 5), xText: String, yText: short, xTitle: "training step" });
  for (const { run, style, values, opacity } of lines) {
    let path = "";
    values.forEach((one, k) => {
      if (one !== null) path += `${path && values[k - 1] !== null ? "L" : "M"}${x(run.steps[k]).toFixed(1)},${y(one).toFixed(1)}`;
    });
    root.append(svg("path", { d: path, fill: "none", stroke: style.colour, "stroke-width": 1.6, "stroke-dasharray": style.dash, opacity: opacity ?? 1 }));
  }
}

function curveText(root, event, name, runs, state) {
  const box = root.getBoundingClientRect();
  const last = Math.max(...runs.flatMap((run) => run.steps));
  const step = ((event.clientX - box.left - 52) / (box.width - 62)) * last;
  const lines = runs.filter((run) => run.metrics[name] && !state.hidden.has(run)).map((run) => {
    const near = run.steps.reduce((best, s, k) => (Math.abs(s - step) < Math.abs(run.steps[best] - step) ? k : best), 0);
    const one = run.metrics[name][near];
    return el("div", {}, `${runs.length > 1 ? `${run.name}, ` : ""}step ${run.steps[near]}: ${one === null ? "–" : short(one)}`);
  });
  if (lines.length) tooltip.show(event.clientX, event.clientY, el("b", {}, name.replaceAll("_", " ")), lines);
}
