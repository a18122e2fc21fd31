"use strict";
// A chat with a masked model: each answer is drawn as it is unmasked.

const $ = (selector, root = document) => root.querySelector(selector);
const PACE = 70; // Milliseconds that a step is shown at least.
let about = null, talk = [], running = [];

const make = (tag, name = "", text = "") => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.textContent = text;
  return node;
};

// ---- The two sides: a policy, and how careful it is

const sides = () => [...document.querySelectorAll(".side")].filter((side) => !side.hidden);
const policyOf = (side) => about.policies[$("select", side).value];

function settingOf(side) {
  const policy = policyOf(side);
  if (!policy.setting) return null;
  const share = $("input", side).value / 100;
  const { fast, careful } = policy;
  let value = policy.logarithmic
    ? Math.exp(Math.log(fast) + share * (Math.log(careful) - Math.log(fast)))
    : fast + share * (careful - fast);
  if (policy.setting === "nfe") {
    value = Math.max(fast, Math.round(value / fast) * fast); // The same number in each block.
  }
  return [policy.setting, Number(value.toPrecision(3))];
}

// The slider begins at the value that the server was started with.
function choosePolicy(side, index) {
  $("select", side).value = index;
  const { fast, careful, value, logarithmic } = policyOf(side);
  if (value === null) return;
  const place = logarithmic ? Math.log(value / fast) / Math.log(careful / fast) : (value - fast) / (careful - fast);
  $("input", side).value = 100 * place;
}

function showSide(side) {
  const setting = settingOf(side);
  $(".speed", side).hidden = !setting;
  $("output", side).textContent = setting ? `${setting[0]} ${setting[1]}` : "has one speed";
}

// Without the setting that the slider has.
const shortName = ({ name, setting }) =>
  name.replace(/^learned:/, "").replace(/^.*\//, "").replace(new RegExp(`[:,]${setting}=[^,]*`), "");

// ---- An answer

class Answer {
  constructor(place, side) {
    const policy = policyOf(side);
    this.policy = policy.name;
    this.setting = settingOf(side);
    this.node = place.appendChild(make("article", "answer"));
    const how = this.setting ? `, ${this.setting[0]} ${this.setting[1]}` : "";
    this.node.append(make("h2", "", shortName(policy) + how));
    this.canvas = this.node.appendChild(make("p", "canvas"));
    this.cost = this.node.appendChild(make("p", "cost", "waiting \u2026"));
    this.shown = 0;
    this.latest = null;
    this.text = "";
    this.abort = new AbortController();
    this.done = this.run();
    this.drawn = this.animate();
  }

  async run() {
    const headers = { "Content-Type": "application/json" };
    if ($("#key").value) headers.Authorization = `Bearer ${$("#key").value}`;
    const body = {
      model: about.model,
      policy: this.policy,
      messages: talk,
      stream: true,
      stream_options: { include_usage: true, include_canvas: true },
    };
    if (this.setting) body[this.setting[0]] = this.setting[1];
    try {
      const answer = await fetch("v1/chat/completions", {
        method: "POST", headers, body: JSON.stringify(body), signal: this.abort.signal,
      });
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      for await (const data of events(answer.body)) this.take(data);
    } catch (error) {
      this.failed = error.name === "AbortError" ? "stopped" : String(error.message || error);
    }
    this.ended = true;
  }

  take(data) {
    if (data.error) throw new Error(data.error.message);
    if (data.canvas) this.latest = data.canvas;
    for (const choice of data.choices) this.text += choice.delta?.content || "";
    if (data.unmasking) this.result = data.unmasking;
    if (data.usage) this.tokens = data.usage.completion_tokens;
  }

  // Draws one step after the other, no faster than can be seen.
  async animate() {
    while (true) {
      if (this.latest && this.shown < this.latest.nfe) {
        this.draw(++this.shown);
        await pause(Math.min(PACE, 2500 / Math.max(this.latest.nfe, 1)));
      } else if (this.ended) {
        break;
      } else {
        await pause(15);
      }
    }
    this.finish();
  }

  draw(steps) {
    const { pieces, step_map: when } = this.latest;
    const last = Math.max(steps - 1, 1);
    const fragment = document.createDocumentFragment();
    pieces.forEach((piece, place) => {
      if (when[place] < 0 || when[place] >= steps) {
        fragment.append(make("span", "hole", "\u2591"));
        return;
      }
      const token = make("span", when[place] === steps - 1 ? "new" : "", piece);
      token.style.setProperty("--hue", Math.round(250 - 215 * (when[place] / last)));
      token.title = `step ${when[place] + 1}`;
      fragment.append(token);
    });
    this.canvas.replaceChildren(fragment);
    this.cost.textContent = `${steps} forwards`;
    show(this.node);
  }

  finish() {
    for (const token of this.canvas.querySelectorAll(".new")) token.classList.remove("new");
    if (this.failed) {
      this.cost.replaceChildren(make("span", "error", this.failed));
      show(this.node);
      return;
    }
    const nfe = this.result.nfe[0], seconds = this.result.seconds[0];
    const each = Math.max(this.tokens, 1), slow = (seconds / nfe) * each;
    this.cost.replaceChildren(
      make("b", "", `${nfe} forwards, ${clock(seconds)}`),
      ` for ${this.tokens} tokens; one token per step: ${each} forwards, about ${clock(slow)}`,
    );
    const bars = this.node.appendChild(make("div", "bars"));
    for (const [name, value, label] of [["own", nfe, "this answer"], ["", each, "one token per step"]]) {
      const bar = bars.appendChild(make("div", name));
      bar.append(make("span", "", label), make("i"));
      bar.lastChild.style.setProperty("--width", `${(100 * value) / Math.max(nfe, each)}%`);
    }
    show(this.node);
  }
}

const show = (node) => node.scrollIntoView({ block: "nearest" });
const pause = (time) => new Promise((done) => setTimeout(done, time));
const clock = (seconds) => seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const text = part.replace(/^data: /, "");
      if (text !== "[DONE]") yield JSON.parse(text);
    }
  }
}

// ---- The page

async function ask() {
  const prompt = $("#prompt").value;
  if (!prompt.trim() || running.length) return;
  talk.push({ role: "user", content: prompt });
  document.body.classList.add("talking");
  $("#talk").append(make("div", "you", prompt));
  $("#prompt").value = "";
  const place = $("#talk").appendChild(make("div", "answers"));
  running = sides().map((side) => new Answer(place, side));
  busy(true);
  await Promise.all(running.map((answer) => answer.drawn));
  // The conversation goes on with the first side's answer.
  if (running[0].failed) talk.pop();
  else talk.push({ role: "assistant", content: running[0].text });
  running = [];
  busy(false);
  document.body.dataset.answers = Number(document.body.dataset.answers || 0) + 1;
}

function busy(is) {
  $("#send").hidden = is;
  $("#stop").hidden = !is;
  if (!is) $("#prompt").focus({ preventScroll: true });
}

async function begin() {
  about = await (await fetch("about")).json();
  $("#model").textContent = about.model;
  document.title = about.model;
  if (!about.is_chat) $("#about").append(" This model has no chat template: each message is a prompt of its own.");
  if (about.example) $("#prompt").placeholder = `For example ${about.example}`;
  $("#key-form").hidden = !about.needs_key;
  for (const side of document.querySelectorAll(".side")) {
    const choice = $("select", side);
    about.policies.forEach((policy, index) => {
      const option = choice.appendChild(make("option", "", shortName(policy)));
      option.value = index;
    });
    choosePolicy(side, Math.min(Number(side.dataset.side), about.policies.length - 1));
    choice.addEventListener("input", () => choosePolicy(side, choice.value));
    side.addEventListener("input", () => showSide(side));
    showSide(side);
  }
  document.body.dataset.ready = "yes";
}

$("#ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("#key-form").addEventListener("submit", (event) => event.preventDefault());
$("#prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); ask(); }
});
$("#stop").addEventListener("click", () => running.forEach((answer) => answer.abort.abort()));
$("#new").addEventListener("click", () => {
  running.forEach((answer) => answer.abort.abort());
  talk = [];
  $("#talk").replaceChildren();
});
$("#two").addEventListener("click", () => {
  const second = $('[data-side="1"]');
  second.hidden = !second.hidden;
  $("#two").setAttribute("aria-pressed", String(!second.hidden));
});
begin().catch((error) => { $("#about").textContent = `The server does not answer: ${error.message}`; });
