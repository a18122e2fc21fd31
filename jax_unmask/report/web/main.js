// The page, from what there is to show.
function build() {
  const page = document.getElementById("page");
  const parts = [];
  const part = (id, title, ...content) => parts.push({ id, title, node: el("section", { id }, el("h2", {}, title), content) });
  const several = DATA.sections.length > 1;
  if (DATA.sections.length) {
    part("frontier", "Accuracy against forwards",
      el("p", {}, "Each mark is a policy at one setting. The broad line is the frontier: the best accuracy that so many forwards buy. "
        + "Thin bars are 95 % confidence intervals over problems (and training seeds, where there are several)."),
      DATA.sections.map((section) => [several ? el("h3", {}, section.title) : null, frontierSection(section)]));
    part("tables", "Tables", DATA.sections.map((section) => [several ? el("h3", {}, section.title) : null,
      section.panels.map((panel) => [standingsTable(panel), areasTable(panel), pointsTable(panel)])]));
  }
  if (DATA.curves.length) part("training", "Training", curvesSection(DATA.curves));
  if (DATA.problems.length) {
    const judged = DATA.problems.some((problem) => problem.traces.some((trace) => trace.score !== null));
    if (judged) part("examples", "Examples", el("p", {}, DATA.problems_note), examplesSection(DATA.problems));
    part("viewer", "Trajectories", el("p", {}, "Every token has the colour of the step that filled it. A grey cell is not filled yet; it shows what the denoiser would write, "
      + "over a bar of its confidence. Point at a token, or tap it, for the numbers; ∎ ends the text; arrow keys step, space plays."), viewerSection(DATA.problems));
  }
  page.append(el("header", {}, el("div", {}, el("h1", {}, DATA.title), el("p", { class: "meta" }, DATA.subtitle)), themeButton()),
    parts.length > 1 ? el("nav", { "aria-label": "Parts" }, parts.map((one) => el("a", { href: `#${one.id}` }, one.title))) : "",
    ...parts.map((one) => one.node));
  if (DATA.about?.length) {
    page.append(el("footer", {}, el("h2", {}, "How this page was made"),
      el("dl", {}, DATA.about.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
      DATA.config ? el("details", {}, el("summary", {}, "All settings"), el("pre", {}, DATA.config)) : null));
  }
  if (!parts.length) page.append(el("p", {}, "There is nothing to show."));
}

function themeButton() {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const button = el("button", { type: "button" });
  const set = (isDark) => {
    root.dataset.theme = isDark ? "dark" : "light";
    button.textContent = isDark ? "☀ light" : "☾ dark";
    button.setAttribute("aria-label", `Switch to ${isDark ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => set(root.dataset.theme !== "dark"));
  dark.addEventListener("change", (event) => set(event.matches));
  let before = false;
  addEventListener("beforeprint", () => { before = root.dataset.theme === "dark"; set(false); });
  addEventListener("afterprint", () => set(before));
  set(dark.matches);
  return button;
}

build();
