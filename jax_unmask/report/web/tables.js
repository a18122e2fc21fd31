// Tables that sort by a click on a column's head. A cell is text, or {text, value, soft, class}.
function table(heads, rows) {
  const body = el("tbody");
  const numeric = heads.map((_, k) => rows.some((row) => typeof row.cells[k] === "object"));
  const cells = heads.map((head, k) => {
    const cell = el("th", { scope: "col", class: numeric[k] ? "number" : null });
    cell.append(el("button", { type: "button", onclick: () => sort(k) }, head));
    return cell;
  });
  const key = (cell) => (typeof cell === "object" ? cell.value : cell);
  function sort(k) {
    const up = cells[k].getAttribute("aria-sort") !== (numeric[k] ? "descending" : "ascending");
    const sign = (numeric[k] ? -1 : 1) * (up ? 1 : -1);
    cells.forEach((cell) => cell.removeAttribute("aria-sort"));
    cells[k].setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    show([...rows].sort((a, b) => {
      const [u, v] = [key(a.cells[k]), key(b.cells[k])];
      if (u === null || v === null) return (u === null) - (v === null);
      return sign * (u < v ? -1 : u > v ? 1 : 0);
    }));
  }
  function show(ordered) {
    body.replaceChildren(...ordered.map((row) => el("tr", { class: row.class }, row.cells.map((cell) =>
      typeof cell === "object"
        ? el("td", { class: "number" }, cell.text, cell.soft ? el("span", { class: "interval" }, ` ${cell.soft}`) : null)
        : el("td", { class: "words" }, cell)))));
  }
  show(rows);
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, el("tr", {}, cells)), body));
}

const value = (v, text, soft = "") => ({ value: v, text, soft });

function pointsTable(panel) {
  const rows = panel.series.flatMap((one) => one.points.map((point) => ({
    class: point.frontier ? "on-frontier" : null,
    cells: [
      one.method, [point.settings, point.seeds].filter(Boolean).join(", ") || "–", one.label,
      value(point.accuracy, percent(point.accuracy), `[${percent(point.low)}, ${percent(point.high)}]`),
      value(point.nfe, number(point.nfe), `[${number(point.nfe_low)}, ${number(point.nfe_high)}]`),
      value(point.ms, point.ms === null ? "–" : short(point.ms)),
      value(point.unfilled, percent(point.unfilled, 2)),
    ],
  })));
  return el("details", {}, el("summary", {}, `All ${rows.length} operating points, ${panel.title}`),
    table(["method", "settings", "group", "accuracy % [95 %]", "NFE [95 %]", "ms/sequence", "unfilled %"], rows),
    el("p", { class: "soft" }, "A bar at the left marks the frontier of this table. A click on a head sorts."));
}

function standingsTable(panel) {
  if (!panel.standings.length) return null;
  const interval = (mean, se, digits) => (se === null ? "" : `[${signed(mean - 1.96 * se, digits)}, ${signed(mean + 1.96 * se, digits)}]`);
  const gain = (one) => (one.gain === null ? value(null, "–")
    : value(one.gain, signed(100 * one.gain), interval(100 * one.gain, one.se === null ? null : 100 * one.se, 1)));
  const saved = ({ forwards, se, least }) => (forwards === null ? value(null, "none is as accurate")
    : value(forwards, `${least ? "≥ " : ""}${signed(forwards, 2)}`, interval(forwards, se, 2)));
  const at = (accuracy, nfe) => (accuracy === null ? value(null, "–") : value(accuracy, `${percent(accuracy)} @ ${number(nfe)}`));
  const rows = panel.standings.map((one) => ({ cells: [
    one.policy, gain(one.interpolated), saved(one.saved), at(one.accuracy, one.nfe),
    one.reference ?? "none is this fast", at(one.reference_accuracy, one.reference_nfe), gain(one.at_most),
  ] }));
  return [el("h3", {}, `Learned policies against heuristics, ${panel.title}`),
    el("p", {}, panel.verdict),
    table(["policy", "points gained at equal NFE", "forwards saved at equal accuracy", "accuracy % @ NFE",
      "best heuristic at equal or lower NFE", "its accuracy % @ NFE", "points above it"], rows),
    el("p", { class: "soft" }, `${panel.constants ? `All policies have ${panel.constants}. ` : ""}The first two columns are against the heuristics’ frontier, `
      + `linear between settings: where it is steep, a large gain can be few forwards. In brackets: 95 % intervals. Heuristic settings were chosen on ${panel.chosen_on}. ${panel.paired
      ? "Intervals are of differences on the same problems." : "Outcomes of single problems were not kept: intervals take the methods as independent, which makes them wider."}`)];
}

function areasTable(panel) {
  if (!panel.areas.length) return null;
  return [el("h3", {}, `Area under the envelope, ${panel.title}`),
    el("p", {}, `Mean accuracy of a method's best setting over all budgets from ${panel.budgets[0]} to ${panel.budgets[1]} forwards, on a logarithmic scale; `
      + "0 for budgets that none of its settings keeps."),
    table(["method", "area %", "group"], panel.areas.map((one) => ({
      cells: [one.method, value(one.area, percent(one.area)), one.label] })))];
}
