// Examples, and the trajectory viewer: several policies on one problem, step by step.
const verdictOf = (score) => score === null ? null
  : el("span", { class: `verdict ${score >= 1 ? "right" : "wrong"}` }, score >= 1 ? "✓ right" : score > 0 ? `✗ score ${short(score)}` : "✗ wrong");
const policyName = (trace) => [trace.method, trace.settings].filter(Boolean).join(", ");
const laneTitle = (trace) => `${policyName(trace)}${trace.block_length < trace.length ? `, blocks of ${trace.block_length}` : ""}`;

function examplesSection(problems) {
  const wrong = problems.map((problem) => problem.traces.some((trace) => trace.score !== null && trace.score < 1));
  const list = el("div");
  const show = (wanted) => list.replaceChildren(...problems.flatMap((problem, k) => (wanted === null || wrong[k] === wanted) ? [example(problem)] : []));
  const filters = [["all", null], ["all right", false], ["some wrong", true]].filter(([, wanted]) => wanted === null || wrong.includes(wanted));
  const picker = el("div", { class: "picker bar" });
  for (const [text, wanted] of filters.length > 2 ? filters : []) {
    picker.append(el("button", { type: "button", "aria-pressed": wanted === null, onclick: (event) => {
      for (const other of picker.children) other.setAttribute("aria-pressed", other === event.currentTarget);
      show(wanted);
    } }, text));
  }
  show(null);
  return el("div", { class: "examples" }, picker, list);
}

function example(problem) {
  const right = problem.traces.filter((trace) => trace.score !== null && trace.score >= 1).length;
  return el("details", { open: problem.open }, el("summary", {}, `${problem.name}: ${right} of ${problem.traces.length} right`),
    el("div", { class: "problem" }, problem.prompt),
    problem.target ? el("p", { class: "soft" }, "A right answer: ", el("code", {}, problem.target)) : null,
    el("div", { class: "answers" }, problem.traces.map((trace) => el("div", { class: "answer" },
      el("h4", {}, laneTitle(trace)), el("div", { class: "meta" }, verdictOf(trace.score), `${trace.score === null ? "" : " · "}NFE ${trace.nfe}`),
      el("pre", {}, trace.drawing || trace.text || "(empty)")))));
}

function viewerSection(problems) {
  const state = { problem: 0, clock: 1, last: 1, off: new Set(), numbers: true, timer: null, speed: 600 };
  const lanes = el("div", { class: "lanes" });
  const prompt = el("div", { class: "problem" });
  const slider = el("input", { type: "range", min: 0, step: 1, "aria-label": "Step" });
  const shown = el("output");
  const play = el("button", { type: "button", "aria-label": "Play" }, "▶ play");
  const policies = el("div", { class: "picker" }), picker = el("div", { class: "picker", role: "group", "aria-label": "Problem" });
  const ramp = el("span", { class: "ramp" });
  let traces = [], views = [];

  function load(index) {
    stop();
    state.problem = index;
    const problem = problems[index];
    [...picker.children].forEach((button, k) => button.setAttribute("aria-pressed", k === index));
    prompt.textContent = problem.prompt;
    traces = problem.traces.map((record) => new Trace(record));
    policies.replaceChildren(...(traces.length > 1 ? traces.map((trace) => toggle(laneTitle(trace), !state.off.has(laneTitle(trace)), (on) => {
      if (on) state.off.delete(laneTitle(trace));
      else state.off.add(laneTitle(trace));
      arrange();
    })) : []));
    arrange();
    go(state.last);
  }

  function arrange() {
    const kept = traces.filter((trace) => !state.off.has(laneTitle(trace)));
    state.last = Math.max(1, ...kept.map((trace) => trace.nfe));
    slider.max = state.last;
    ramp.replaceChildren("step 1", rampBar(), `step ${state.last}`);
    views = kept.map((trace) => lane(trace, state));
    lanes.replaceChildren(...views.map((view) => view.node));
    go(Math.min(state.clock, state.last));
  }

  function go(clock) {
    state.clock = Math.min(Math.max(clock, 0), state.last);
    slider.value = state.clock;
    shown.textContent = `after step ${state.clock} of ${state.last}`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    tooltip.hide();
    views.forEach((view) => view.show(state.clock));
  }

  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    play.textContent = "▶ play";
    play.setAttribute("aria-label", "Play");
  }

  function start() {
    if (state.clock >= state.last) go(0);
    play.textContent = "❚❚ pause";
    play.setAttribute("aria-label", "Pause");
    clearInterval(state.timer);
    state.timer = setInterval(() => {
      go(state.clock + 1);
      if (state.clock >= state.last) stop();
    }, state.speed);
  }

  const move = (by) => { stop(); go(state.clock + by); };
  play.addEventListener("click", () => (state.timer === null ? start() : stop()));
  slider.addEventListener("input", () => { stop(); go(+slider.value); });
  const speed = el("select", { "aria-label": "Speed" }, [["slow", 1400], ["normal", 600], ["fast", 200], ["very fast", 60]].map(([name, ms]) =>
    el("option", { value: ms, selected: ms === state.speed }, name)));
  speed.addEventListener("change", () => {
    state.speed = +speed.value;
    if (state.timer !== null) start();
  });
  problems.forEach((problem, k) => {
    const scores = problem.traces.map((trace) => trace.score).filter((score) => score !== null);
    const sign = !scores.length ? "" : scores.every((score) => score >= 1) ? " ✓" : scores.some((score) => score >= 1) ? " ✓✗" : " ✗";
    picker.append(el("button", { type: "button", onclick: () => load(k) }, problem.name, sign));
  });

  const root = el("div", { class: "viewer", tabindex: 0, role: "region", "aria-label": "Trajectory viewer: arrow keys step, space plays" },
    problems.length > 1 ? picker : null, prompt, policies,
    el("div", { class: "clock" }, play, el("button", { type: "button", "aria-label": "Back", onclick: () => move(-1) }, "◀"),
      el("button", { type: "button", "aria-label": "Forward", onclick: () => move(1) }, "▶"), slider, shown),
    el("div", { class: "bar" }, speed, toggle("step numbers", state.numbers, (on) => { state.numbers = on; go(state.clock); }), ramp),
    lanes);
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const act = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), Home: () => move(-Infinity), End: () => move(Infinity),
      " ": event.target.tagName === "BUTTON" ? null : () => play.click() }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  // On paper the end of the generation says most, with the step of each token in numbers.
  addEventListener("beforeprint", () => { stop(); state.numbers = true; go(state.last); });
  load(0);
  return root;
}

function rampBar() {
  const bar = el("i");
  bar.style.background = `linear-gradient(90deg, ${CIVIDIS.map((rgb) => `rgb(${rgb})`).join(", ")})`;
  return bar;
}

/** One policy's canvas. Its tokens are made once; a step changes what differs. */
function lane(trace, state) {
  const meta = el("div", { class: "meta" }), canvas = el("div", { class: "canvas" });
  const tokens = trace.step_map.map((_, position) => {
    const node = el("span", { class: "token" });
    node.dataset.position = position;
    return node;
  });
  tokens.forEach((node, position) => {
    if (trace.ends.has(position)) canvas.append(el("span", { class: "block-end", title: "end of a block" }));
    canvas.append(node);
    if (position < trace.ended && trace.pieces[position].includes("\n")) canvas.append(el("br"));
  });
  let clock = 0;
  const place = (event) => event.target.closest?.(".token");
  const tell = (node, x, y) => tooltip.show(x, y, tokenText(trace, +node.dataset.position, clock));
  canvas.addEventListener("pointermove", (event) => (place(event) ? tell(place(event), event.clientX, event.clientY) : tooltip.hide()));
  canvas.addEventListener("pointerdown", (event) => place(event) && tell(place(event), event.clientX, event.clientY));
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && tooltip.hide());

  function show(now) {
    clock = Math.min(now, trace.nfe);
    meta.replaceChildren(...[verdictOf(trace.score), trace.score === null ? null : " · ", `NFE ${trace.nfe} · ${trace.count(clock)} of ${trace.length} filled`,
      now >= trace.nfe ? " · done" : ""].filter((part) => part !== null));
    tokens.forEach((node, position) => paint(trace, node, position, clock, now, state));
    if (drawing) drawing.style.visibility = now >= trace.nfe ? "visible" : "hidden";
  }
  const drawing = trace.drawing ? el("pre", { class: "drawing" }, trace.drawing) : null;
  const node = el("div", { class: "lane" }, el("h4", {}, laneTitle(trace)), meta, canvas, drawing);
  return { node, show };
}

function paint(trace, node, position, clock, now, state) {
  const made = trace.at(position, clock);
  if (made) {
    const step = made.step;
    const { background, ink } = stepColour(step, state.last - 1);
    // A step stands out while the clock stands at it; not for ever in a canvas that was done earlier.
    const isNew = step === now - 1 && now <= trace.nfe && now < state.last;
    node.className = `token${isNew ? " new" : ""}${position >= trace.ended ? " over" : ""}`;
    node.style.background = background;
    node.style.color = ink;
    node.replaceChildren(position >= trace.ended ? "∎" : visible(made.piece));
    if (state.numbers) node.append(el("sup", {}, `${step + 1}`));
    return;
  }
  const next = trace.next(clock), open = trace.isOpen(next, position), p = trace.confidenceAt(next, position);
  node.className = `token mask${open ? "" : " off"}`;
  node.style.background = node.style.color = "";
  const guess = open ? trace.candidateAt(next, position) : null;
  node.replaceChildren(guess === null ? " " : visible(guess));
  if (open && p !== null) {
    const level = el("span", { class: "level" });
    level.style.width = `${Math.round(100 * p)}%`;
    node.append(level);
  }
}
