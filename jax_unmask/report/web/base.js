// Elements, numbers and the tooltip. Text only ever becomes text nodes: what a model wrote may look
// like markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const percent = (value, digits = 1) =>
  value === null ? "–" : `${(100 * value).toFixed(digits)}`;
const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
const signed = (value, digits = 1) =>
  value === null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
const short = (value) =>
  value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : `${+value.toPrecision(4)}`;

const tooltip = {
  node: document.getElementById("tooltip"),
  show(x, y, ...content) {
    this.node.replaceChildren(...content.flat(Infinity).filter((part) => part !== null));
    this.node.hidden = false;
    const box = this.node.getBoundingClientRect();
    const left = Math.min(Math.max(x + 14, 6), window.innerWidth - box.width - 6);
    const below = y + 16 + box.height < window.innerHeight;
    this.node.style.left = `${Math.max(left, 6)}px`;
    this.node.style.top = `${below ? y + 16 : Math.max(y - box.height - 12, 6)}px`;
  },
  hide() {
    this.node.hidden = true;
  },
};
addEventListener("scroll", () => tooltip.hide(), { passive: true });
addEventListener("keydown", (event) => {
  if (event.key === "Escape") tooltip.hide();
});

function toggle(text, pressed, change) {
  const button = el("button", { type: "button", "aria-pressed": pressed }, text);
  button.addEventListener("click", () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", now);
    change(now);
  });
  return button;
}

/** Round numbers in [low, high], about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    found.push(+(k * step).toPrecision(12));
  }
  return found;
}

function powersOfTwo(low, high) {
  const found = [];
  for (let k = Math.ceil(Math.log2(low) - 1e-9); 2 ** k <= high * (1 + 1e-9); k++) found.push(2 ** k);
  return found;
}

/** A linear or base-2 logarithmic map from [low, high] to [from, to]. */
function scale(low, high, from, to, isLog = false) {
  const f = isLog ? Math.log2 : (x) => x;
  const width = f(high) - f(low) || 1;
  return (x) => from + ((f(x) - f(low)) / width) * (to - from);
}

/** Draws now and whenever the width of the node changes, so that text keeps its size. */
function drawn(node, draw) {
  let width = 0;
  const again = () => {
    const now = Math.floor(node.getBoundingClientRect().width);
    if (now > 0 && now !== width) draw((width = now));
  };
  new ResizeObserver(again).observe(node);
  return () => draw(width || 560);
}
