// One recorded generation: what was on the canvas at each step, and what stood behind it.
class Trace {
  constructor(record) {
    Object.assign(this, record);
    this.length = record.step_map.length;
    this.seen = record.steps && bytes(record.steps.confidence);
    this.odds = record.steps && record.steps.probability && bytes(record.steps.probability);
    this.last = Math.max(this.nfe, 1);
    this.ends = new Set(record.blocks.slice(1));
  }

  /** What stands at a position after `clock` steps: its step, text and confidence; null: nothing. */
  at(position, clock) {
    // Policies that edit write a position more than once; what was taken back has no text.
    const writes = this.steps?.rewritten[position]
      ?? [[this.step_map[position], this.pieces[position], this.confidence[position]]];
    const made = writes.filter(([step]) => step >= 0 && step < clock).at(-1);
    return made && made[1] !== null ? { step: made[0], piece: made[1], confidence: made[2] } : null;
  }

  /** The step that decides what is shown of positions that are not filled yet: the next one. */
  next(clock) {
    return Math.min(clock, this.nfe - 1);
  }

  confidenceAt(step, position) {
    return this.seen ? this.seen[step * this.length + position] / 255 : null;
  }

  probabilityAt(step, position) {
    return this.odds ? this.odds[step * this.length + position] / 255 : null;
  }

  /** What the denoiser would have written; records hold what changed from step to step. */
  candidateAt(step, position) {
    if (!this.steps) return null;
    for (let k = step; k >= 0; k--) {
      const changes = this.steps.candidates[k];
      for (let j = 0; j < changes.length; j += 2) {
        if (changes[j] === position) return this.steps.vocabulary[changes[j + 1]];
      }
    }
    return null;
  }

  isOpen(step, position) {
    const start = this.steps ? this.steps.block_start[step] : 0;
    const end = this.blocks.find((one) => one > start) ?? this.length;
    return position >= start && position < end;
  }

  count(clock) {
    return this.step_map.filter((_, position) => this.at(position, clock)).length;
  }
}

function bytes(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

// Cividis: its lightness rises steadily, for people with any colour vision and on grey paper.
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [253, 231, 55]];

function stepColour(step, last) {
  const at = last <= 0 ? 0 : (Math.min(step / last, 1)) * (CIVIDIS.length - 1);
  const k = Math.min(Math.floor(at), CIVIDIS.length - 2), part = at - k;
  const rgb = CIVIDIS[k].map((from, c) => Math.round(from + part * (CIVIDIS[k + 1][c] - from)));
  const light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255;
  return { background: `rgb(${rgb})`, ink: light > 0.48 ? "#000" : "#fff" };
}

/** Line ends and spaces, which would not be seen, as signs. */
function visible(piece) {
  if (piece === "") return "·";
  return piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +$/, (spaces) => "␣".repeat(spaces.length));
}

function tokenText(trace, position, clock) {
  const name = el("b", {}, `position ${position + 1} of ${trace.length}`);
  const odds = (step) => {
    const p = trace.probabilityAt(step, position);
    return el("div", {}, p === null ? "the policy is deterministic: it has no probability" : `policy's probability of filling it ${percent(p)} %`);
  };
  const made = trace.at(position, clock);
  if (made) {
    return [name, el("div", {}, "token ", el("code", {}, `“${visible(made.piece)}”`), position >= trace.ended ? ", at or behind the end of the text" : ""),
      el("div", {}, `filled at step ${made.step + 1} of ${trace.nfe}`), el("div", {}, `confidence ${percent(made.confidence, 2)} %`),
      odds(made.step), spark(trace, position)];
  }
  const step = trace.next(clock), guess = trace.candidateAt(step, position), p = trace.confidenceAt(step, position);
  return [name, el("div", {}, `not filled; before step ${step + 1}:`),
    guess === null ? null : el("div", {}, "candidate ", el("code", {}, `“${visible(guess)}”`)),
    p === null ? null : el("div", {}, `confidence ${percent(p)} %`),
    trace.isOpen(step, position) ? odds(step) : el("div", {}, "behind the current block: may not be filled yet"), spark(trace, position)];
}

/** Confidence (line) and the policy's probability (dashes) of a position until it was filled. */
function spark(trace, position) {
  const until = trace.step_map[position] < 0 ? trace.nfe - 1 : trace.step_map[position];
  if (!trace.seen || until < 1) return null;
  const x = scale(0, until, 2, 158), y = scale(0, 1, 32, 3);
  const line = (read, dash) => {
    const points = [];
    for (let step = 0; step <= until; step++) points.push(`${x(step).toFixed(1)},${y(read(step)).toFixed(1)}`);
    return svg("polyline", { points: points.join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5, "stroke-dasharray": dash });
  };
  return el("div", {}, svg("svg", { viewBox: "0 0 160 35", width: 160, height: 35 },
    svg("path", { class: "axis", d: "M2,33H158", fill: "none" }),
    line((step) => trace.confidenceAt(step, position), ""),
    trace.odds ? line((step) => trace.probabilityAt(step, position), "3 3") : null),
  el("div", { class: "soft" }, `steps 1 to ${until + 1}: confidence${trace.odds ? ", policy's probability dashed" : ""}`));
}
