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
  const map = (x) => from + ((f(x) - f(low)) / width) * (to - from);
  map.back = (place) => {
    const there = f(low) + ((place - from) / (to - from)) * width;
    return isLog ? 2 ** there : there;
  };
  return map;
}

/** A button that saves what `make` gives: a name and a blob, or a promise of them. */
function download(text, make) {
  return el("button", { type: "button", "aria-label": `Download ${text}`, onclick: async () => {
    const [name, blob] = await make(), address = URL.createObjectURL(blob);
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  } }, `↓ ${text}`);
}

const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-family", "font-size", "text-anchor"];

/** A drawing as a file of its own: what the page's style says stands in its elements. */
function standalone(root) {
  const box = root.getBoundingClientRect(), copy = root.cloneNode(true);
  const from = [...root.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((node, k) => {
    const style = getComputedStyle(from[k]);
    for (const name of DRAWN) node.setAttribute(name, style.getPropertyValue(name));
  });
  fill(copy, { xmlns: SVG, width: Math.round(box.width), height: Math.round(box.height) }, []);
  const paper = getComputedStyle(document.documentElement).backgroundColor;
  copy.prepend(svg("rect", { width: "100%", height: "100%", fill: paper }));
  return new XMLSerializer().serializeToString(copy);
}

function pictureButtons(root, name) {
  const png = async () => {
    const box = root.getBoundingClientRect(), image = new Image(), canvas = document.createElement("canvas");
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(root))}`;
    await image.decode();
    [canvas.width, canvas.height] = [2 * box.width, 2 * box.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return [`${name}.png`, await new Promise((done) => canvas.toBlob(done, "image/png"))];
  };
  return [download("PNG", png), download("SVG", () => [`${name}.svg`, new Blob([standalone(root)], { type: "image/svg+xml" })])];
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
