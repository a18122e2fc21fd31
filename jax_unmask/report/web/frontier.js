// Accuracy against forwards: one panel per block length, one legend for all of a section.
const MEASURES = {
  nfe: { name: "forwards (NFE)", title: "denoiser forwards per sequence (NFE)", low: "nfe_low", high: "nfe_high" },
  cost: { name: "work", title: "work per sequence, in forwards without a cache" },
  ms: { name: "time", title: "measured milliseconds per sequence" },
};

function frontierSection(section) {
  const names = [];
  for (const panel of section.panels) {
    for (const one of panel.series) {
      if (!names.some((other) => other.key === one.key)) names.push(one);
    }
  }
  const styles = new Map();
  seriesStyles(names).forEach((style, k) => styles.set(names[k].key, style));
  const reach = Math.max(...section.panels.flatMap((p) => p.series.flatMap((s) => s.points.map((q) => q.nfe))));
  const nearest = Math.min(...section.panels.flatMap((p) => p.series.flatMap((s) => s.points.map((q) => q.nfe))));
  const state = { hidden: new Set(), log: reach >= 8 * nearest, measure: "nfe", bars: true, fromZero: false, best: false, highlight: null };
  const redraw = [];
  const update = () => redraw.forEach((draw) => draw());

  const buttons = new Map();
  const legend = [...new Set(names.map((one) => one.label))].map((label) => {
    const members = names.filter((one) => one.label === label);
    return el("div", { class: "legend", role: "group", "aria-label": label },
      el("b", {}, label), members.map((one) => {
        const button = toggle("", true, (on) => {
          if (on) state.hidden.delete(one.key);
          else state.hidden.add(one.key);
          state.highlight = null;  // The pointer is still on the button; the others stay bright.
          update();
        });
        button.append(swatch(styles.get(one.key), one.learned), one.method);
        for (const [event, key] of [["pointerenter", one.key], ["pointerleave", null]]) {
          button.addEventListener(event, () => {
            state.highlight = state.hidden.has(key) ? null : key;
            update();
          });
        }
        buttons.set(one.key, button);
        return button;
      }));
  });
  const show = (wanted) => {
    for (const one of names) {
      const on = wanted(one);
      buttons.get(one.key).setAttribute("aria-pressed", on);
      if (on) state.hidden.delete(one.key);
      else state.hidden.add(one.key);
    }
    update();
  };
  const option = (name, text) => toggle(text, state[name], (on) => { state[name] = on; update(); });
  const known = Object.keys(MEASURES).filter((name) => section.panels.every((p) => p.series.every((s) => s.points.every((q) => q[name] !== null))));
  const against = el("select", { "aria-label": "What accuracy is shown against" },
    known.map((name) => el("option", { value: name }, `against ${MEASURES[name].name}`)));
  against.addEventListener("change", () => { state.measure = against.value; update(); });
  const controls = el("div", { class: "bar" }, known.length > 1 ? against : null,
    option("log", "log axis"), option("bars", "intervals"), option("fromZero", "from 0 %"),
    option("best", "frontier only"),
    el("button", { type: "button", onclick: () => show(() => true) }, "show all"),
    download("CSV", () => ["points.csv", new Blob([pointsCsv(section)], { type: "text/csv" })]));
  const panels = section.panels.map((panel) => {
    const figure = frontierPanel(panel, styles, state);
    redraw.push(figure.draw);
    return figure.node;
  });
  return el("div", { class: "frontier" }, controls, legend, el("div", { class: "panels" }, panels));
}

function frontierPanel(panel, styles, state) {
  const root = svg("svg", { role: "img", tabindex: 0, "aria-label": `Accuracy against denoiser forwards, ${panel.title}. Arrow keys visit the points.` });
  let places = [], chosen = -1, ring = null, zoom = null;
  const unzoom = el("button", { type: "button", hidden: "", onclick: () => { zoom = null; again(); } }, "reset zoom");
  const node = el("figure", {}, el("figcaption", {}, panel.title), root,
    el("div", { class: "bar tools" }, pictureButtons(root, "frontier"), unzoom, el("span", { class: "soft" }, "Drag over the plot to zoom in.")));

  function draw(width) {
    const height = Math.round(Math.min(Math.max(width * 0.68, 270), 400));
    const at = { left: 44, right: width - 12, top: 10, bottom: height - 40 };
    const shown = panel.series.filter((one) => !state.hidden.has(one.key));
    const measure = MEASURES[state.measure], at_ = (point) => point[state.measure];
    const all = shown.flatMap((one) => one.points), best = new Set(state.best ? frontierOf(all, at_) : all);
    const points = all.filter((point) => best.has(point));
    root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    root.setAttribute("height", height);
    root.replaceChildren();
    places = []; chosen = -1;
    if (!points.length) {
      root.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "Nothing is shown."));
      return;
    }
    const low = Math.min(...points.map(at_)), high = Math.max(...points.map(at_));
    const [x0, x1] = zoom?.x ?? (state.log ? [low * 0.93, high * 1.07]
      : [low - (high - low || 2) * 0.04, high + (high - low || 2) * 0.04]);
    const x = scale(x0, x1, at.left, at.right, state.log);
    const floor = Math.min(...points.map((point) => point.low)), ceiling = Math.max(...points.map((point) => point.high));
    const [y0, y1] = zoom?.y ?? [state.fromZero ? 0 : Math.max(floor - 0.02, 0), Math.min(ceiling + 0.02, 1.02)];
    const y = scale(y0, y1, at.bottom, at.top);
    axes(root, at, {
      x, y, xTicks: state.log && x1 / x0 > 3 ? powersOfTwo(x0, x1) : ticks(x0, x1, width / 70).filter((t) => t > 0 || !state.log),
      yTicks: ticks(y0, Math.min(y1, 1), 6), xText: short, yText: (t) => `${+(100 * t).toFixed(1)} %`,
      xTitle: measure.title,
    });
    // Intervals, and what lies outside of a zoom, end at the frame.
    const name = `inside-${(clips += 1)}`;
    const inside = svg("g", { "clip-path": `url(#${name})` });
    root.append(svg("clipPath", { id: name }, svg("rect", { x: at.left, y: at.top - 9, width: at.right - at.left + 9, height: at.bottom - at.top + 9 })), inside);
    stairs(inside, points, at_, x, y, at.right);
    // What was trained here lies on top.
    for (const one of [...shown].sort((a, b) => rank(a) - rank(b))) {
      series(inside, { ...one, points: one.points.filter((point) => best.has(point)) }, x, y, at_, measure);
    }
    const isInside = (place) => place.x >= at.left - 1 && place.x <= at.right + 1 && place.y >= at.top - 9 && place.y <= at.bottom + 1;
    places = places.filter(isInside).sort((a, b) => a.x - b.x);
    ring = svg("circle", { class: "ring", r: 9, visibility: "hidden" });
    root.append(ring);
    frame = { at, x, y };
  }

  function series(inside, one, x, y, at_, measure) {
    const style = styles.get(one.key);
    const faded = state.highlight !== null && state.highlight !== one.key;
    const group = svg("g", { opacity: faded ? 0.15 : 1 });
    const ordered = [...one.points].sort((a, b) => at_(a) - at_(b));
    if (!one.learned || ordered.length > 1) {
      group.append(svg("polyline", {
        points: ordered.map((point) => `${x(at_(point)).toFixed(1)},${y(point.accuracy).toFixed(1)}`).join(" "),
        fill: "none", stroke: style.colour, "stroke-width": 1.5, "stroke-dasharray": style.dash, opacity: one.learned ? 0.5 : 0.9,
      }));
    }
    for (const point of ordered) {
      const px = x(at_(point)), py = y(point.accuracy);
      if (state.bars) {
        group.append(svg("path", {
          d: `M${px},${y(point.low)}V${y(point.high)}${measure.low ? `M${x(Math.max(point[measure.low], 1e-3))},${py}H${x(point[measure.high])}` : ""}`,
          stroke: style.colour, "stroke-width": 1, opacity: 0.65,
        }));
      }
      group.append(marker(style, px, py, one.learned));
      places.push({ x: px, y: py, point, one });
    }
    inside.append(group);
  }

  // A rectangle drawn with the mouse becomes the whole plot.
  let frame = null, start = null, band = null;
  const place = (event) => {
    const box = root.getBoundingClientRect(), { at } = frame;
    return [Math.min(Math.max(event.clientX - box.left, at.left), at.right), Math.min(Math.max(event.clientY - box.top, at.top), at.bottom)];
  };
  root.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button || !frame) return;
    start = place(event);
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointerup", (event) => {
    const end = start && place(event);
    band?.remove();
    band = null;
    if (end && Math.abs(end[0] - start[0]) > 8 && Math.abs(end[1] - start[1]) > 8) {
      const sorted = (a, b) => [Math.min(a, b), Math.max(a, b)];
      zoom = { x: sorted(frame.x.back(start[0]), frame.x.back(end[0])), y: sorted(frame.y.back(start[1]), frame.y.back(end[1])) };
      again();
    }
    start = null;
  });

  function choose(index) {
    chosen = index;
    if (index < 0) {
      ring?.setAttribute("visibility", "hidden");
      tooltip.hide();
      return;
    }
    const { x, y, point, one } = places[index];
    fill(ring, { cx: x, cy: y, visibility: "visible" }, []);
    const box = root.getBoundingClientRect();
    tooltip.show(box.left + x, box.top + y, pointText(one, point));
  }
  root.addEventListener("pointermove", (event) => {
    if (start) {
      const end = place(event);
      if (!band) root.append((band = svg("rect", { class: "band" })));
      fill(band, { x: Math.min(start[0], end[0]), y: Math.min(start[1], end[1]), width: Math.abs(end[0] - start[0]), height: Math.abs(end[1] - start[1]) }, []);
      return;
    }
    const box = root.getBoundingClientRect();
    const distance = ({ x, y }) => Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    let best = -1;
    places.forEach((place, k) => {
      if (distance(place) < (best < 0 ? 26 : distance(places[best]))) best = k;
    });
    if (best !== chosen || best < 0) choose(best);
  });
  root.addEventListener("pointerleave", () => choose(-1));
  root.addEventListener("blur", () => choose(-1));
  root.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!move || !places.length) return;
    event.preventDefault();
    choose((chosen + move + places.length) % places.length);
  });
  const redraw = drawn(root, draw);
  function again() {
    unzoom.hidden = !zoom;
    redraw();
  }
  return { node, draw: again };
}

const rank = (one) => (one.trained ? 2 : one.learned ? 1 : 0);
let clips = 0;

/** The points that no other beats. */
function frontierOf(points, at_) {
  let best = -1;
  return [...points].sort((a, b) => at_(a) - at_(b) || b.accuracy - a.accuracy).filter((point) => {
    const better = point.accuracy > best;
    best = Math.max(best, point.accuracy);
    return better;
  });
}

function pointsCsv(section) {
  const names = ["settings", "accuracy", "low", "high", "nfe", "nfe_low", "nfe_high", "cost", "ms", "unfilled", "frontier"];
  const rows = section.panels.flatMap((panel) => panel.series.flatMap((one) => one.points.map((point) =>
    [panel.title, one.label, one.method, ...names.map((name) => point[name])])));
  const cell = (value) => (/[",\n]/.test(`${value ?? ""}`) ? `"${`${value}`.replaceAll('"', '""')}"` : `${value ?? ""}`);
  return [["panel", "group", "method", ...names], ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function pointText(one, point) {
  const lines = [
    `accuracy ${percent(point.accuracy)} % [${percent(point.low)}, ${percent(point.high)}]`,
    `NFE ${number(point.nfe)} [${number(point.nfe_low)}, ${number(point.nfe_high)}]`,
    point.cost === null ? null : `work of ${number(point.cost)} forwards without a cache`,
    point.ms === null ? null : `${short(point.ms)} ms per sequence`,
    point.frontier ? "on the frontier" : null,
  ];
  return [el("b", {}, one.method), el("div", { class: "soft" }, [one.label, point.settings, point.seeds].filter(Boolean).join(", ")),
    lines.filter(Boolean).map((line) => el("div", {}, line))];
}

/** The frontier as budgets see it: the best accuracy that so many forwards buy. */
function stairs(root, points, at_, x, y, right) {
  let path = "";
  for (const point of frontierOf(points, at_)) {
    const px = x(at_(point)).toFixed(1), py = y(point.accuracy).toFixed(1);
    path += path ? `H${px}V${py}` : `M${px},${py}`;
  }
  root.append(svg("path", { class: "stairs", d: `${path}H${right}` }));
}

function axes(root, at, { x, y, xTicks, yTicks, xText, yText, xTitle }) {
  for (const t of yTicks) {
    root.append(svg("line", { class: "grid", x1: at.left, x2: at.right, y1: y(t), y2: y(t) }),
      svg("text", { x: at.left - 7, y: y(t) + 4, "text-anchor": "end" }, yText(t)));
  }
  for (const t of xTicks) {
    root.append(svg("line", { class: "grid", x1: x(t), x2: x(t), y1: at.top, y2: at.bottom }),
      svg("text", { x: x(t), y: at.bottom + 17, "text-anchor": "middle" }, xText(t)));
  }
  root.append(svg("path", { class: "axis", fill: "none", d: `M${at.left},${at.top}V${at.bottom}H${at.right}` }),
    svg("text", { x: (at.left + at.right) / 2, y: at.bottom + 35, "text-anchor": "middle" }, xTitle));
}
