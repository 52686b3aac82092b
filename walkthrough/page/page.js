// The page: it opens the model, runs it as the controls say, and has the views drawn.

import { openModel } from "./core.js";
import { $, make, number } from "./dom.js";
import { showRing } from "./ring.js";
import { readSafetensors } from "./safetensors.js";
import { argmax, draw, makeRandom, process, softmax } from "./sampling.js";
import { Session } from "./session.js";
import { Tokenizer } from "./tokenizer.js";
import {
  SHOWN, cellAt, describeCell, showMatrix, showNext, showReader, showStream, showTokens,
} from "./views.js";

const BUSY = 30; // milliseconds of computing before the browser has its turn
const DRAW = 120; // milliseconds between two drawings at full speed
const NO_WINDOW = 257; // the slider's last place, for a model without a window

const turn = () => new Promise((done) => setTimeout(done)); // of the browser
const OPTIONS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"];

// Opening the model

const contentOf = (id) => $(id).textContent;

function bytesOf(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// A file that was split into `stride` planes, of every stride-th byte each, and gzipped.
async function unpack(base64, stride) {
  const zipped = new Blob([bytesOf(base64)]).stream();
  const stream = zipped.pipeThrough(new DecompressionStream("gzip"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const bytes = new Uint8Array(planes.length);
  const size = planes.length / stride;
  for (let plane = 0; plane < stride; plane++) {
    for (let i = 0; i < size; i++) bytes[i * stride + plane] = planes[plane * size + i];
  }
  return bytes;
}

let about, model, tokenizer, session, random;
let layer = 0;
let head = 0;
let selected = null; // a position; null: the last
let wanted = []; // the tokens that go through the model, also before all of them have
let resuming = false; // the window was moved while a text was generated
let job = 0; // goes up whenever what runs has to stop

async function open() {
  about = JSON.parse(contentOf("about-model"));
  tokenizer = new Tokenizer(bytesOf(contentOf("tokenizer-model")));
  const file = await unpack(contentOf("weights"), about.stride);
  model = openModel(about.config, readSafetensors(file));
  layer = model.layers - 1;
  showFacts();
  makeChoices("layer", model.layers, (n) => (layer = n), layer, 0);
  makeChoices("head", model.H, (n) => (head = n), head, model.H / model.K);
  const slider = $("window");
  slider.max = Number.isFinite(model.W) ? model.W : NO_WINDOW;
  slider.value = slider.max;
  const { generation } = about;
  for (const name of OPTIONS) if (generation[name] != null) $(name).value = generation[name];
  $("greedy").checked = !generation.do_sample;
  $("prompt").value = about.text;
  for (const id of ["prompt", "window", "reset"]) $(id).disabled = false;
  await start();
}

function showFacts() {
  const parameters = Object.values(model.weights).reduce((sum, { data }) => sum + data.length, 0);
  const { layers, D, H, K, V, W } = model;
  const facts = {
    parameters: number(parameters),
    layers,
    width: number(D),
    "query heads": H,
    "key/value heads": K,
    vocabulary: number(V),
    window: Number.isFinite(W) ? `${number(W)} tokens` : "none",
  };
  $("about").textContent = about.about;
  for (const [name, value] of Object.entries(facts)) {
    $("facts").append(make("div", {}, make("dt", {}, name), make("dd", {}, String(value))));
  }
}

// Radio buttons 0 to count - 1; `group` of them belong together.
function makeChoices(id, count, choose, chosen, group) {
  for (let n = 0; n < count; n++) {
    const input = make("input", { type: "radio", name: id, value: n });
    input.checked = n === chosen;
    input.addEventListener("change", () => {
      choose(n);
      render();
    });
    const apart = group > 1 && n > 0 && n % group === 0 ? "apart" : "";
    $(id).append(make("label", { class: apart }, input, make("span", {}, String(n))));
  }
}

// Running the model. What takes long lets the browser draw in between.

const state = () => document.documentElement.dataset.state;
function setState(name, says) {
  document.documentElement.dataset.state = name;
  $("status").textContent = says;
  $("play").textContent = name === "playing" ? "Pause" : "Play";
  const done = name !== "playing" && (name !== "idle" || Boolean(ended()));
  $("step").disabled = $("play").disabled = done;
}

function windowOf(slider) {
  const value = Number(slider.value);
  return !Number.isFinite(model.W) && value === NO_WINDOW ? Infinity : value;
}

const promptIds = () => {
  const { bos_token_id: bos } = about.config;
  const ids = tokenizer.encode($("prompt").value.toWellFormed?.() ?? $("prompt").value);
  return bos == null ? (ids.length ? ids : [0]) : [bos, ...ids];
};

// Begin anew with the text in the box.
function start() {
  resuming = false;
  random = makeRandom(Number($("seed").value));
  selected = null;
  return run(promptIds().map((id) => ({ id, made: false })));
}

// Run these tokens through the model, from the first one on -> whether it came to the end.
async function run(tokens) {
  const mine = ++job;
  wanted = tokens;
  const next = new Session(model, windowOf($("window")));
  setState("computing", "Computing …");
  for (let begun = performance.now(), n = 0; n < tokens.length; n++) {
    next.advance(tokens[n].id, tokens[n].made);
    if (performance.now() - begun > BUSY) {
      setState("computing", `Computing: token ${n + 1} of ${tokens.length}`);
      await turn();
      if (mine !== job) return false;
      begun = performance.now();
    }
  }
  session = next;
  wanted = session.tokens;
  if (selected !== null && selected >= tokens.length) selected = null;
  settle();
  render();
  return true;
}

const isEnd = (id) => [about.config.eos_token_id].flat().includes(id);

// Why nothing can be generated, or "".
function ended() {
  const { tokens } = session;
  const last = tokens.at(-1);
  if (last.made && isEnd(last.id)) return `The model ended its text with ${tokenizer.shown(last.id)}.`;
  if (tokens.length >= about.config.max_position_embeddings) {
    return `${number(tokens.length)} tokens: the model knows no position beyond.`;
  }
  return "";
}

function settle() {
  const { length } = session.tokens;
  setState("idle", ended() || `${number(length)} token${length === 1 ? "" : "s"}. Step adds one.`);
}

// Draw the next token and run it.
function step() {
  const { after } = distribution();
  session.advance($("greedy").checked ? argmax(after) : draw(after, random), true);
}

async function play() {
  const mine = ++job;
  selected = null;
  let made = 0;
  let busy = 0; // milliseconds
  let drawn = -Infinity; // when
  while (!ended()) {
    const begun = performance.now();
    const perSecond = Number($("speed").value);
    do {
      step();
      made++;
    } while (perSecond === Infinity && !ended() && performance.now() - begun < BUSY);
    busy += performance.now() - begun;
    if (perSecond < Infinity || begun - drawn > DRAW) {
      const speed = `computes ${number(Math.round((1000 * made) / busy))} a second`;
      setState("playing", `${number(session.tokens.length)} tokens; ${speed}.`);
      render();
      drawn = begun;
    }
    do await turn();
    while (mine === job && performance.now() - begun < 1000 / perSecond);
    if (mine !== job) return;
  }
  settle();
  render();
}

// The probabilities of the next token before and after the options, and which option cuts which.
function distribution() {
  const options = Object.fromEntries(OPTIONS.map((name) => [name, Number($(name).value)]));
  options.min_p ||= null; // 0 cuts nothing
  const logits = session.logits();
  const present = new Set(session.tokens.map(({ id }) => id));
  const greedy = $("greedy").checked;
  const used = greedy ? { repetition_penalty: options.repetition_penalty } : options;
  const cutBy = new Map();
  const left = []; // [option, how many tokens it leaves]
  const scores = process(logits, present, used, (name, scores) => {
    scores.forEach((score, id) => {
      if (score === -Infinity && !cutBy.has(id)) cutBy.set(id, name);
    });
    if (["top_k", "top_p", "min_p"].includes(name)) left.push([name, scores.length - cutBy.size]);
  });
  const best = argmax(scores);
  const after = greedy ? logits.map((_, id) => Number(id === best)) : softmax(scores);
  return { before: softmax(logits), after, cutBy, left };
}

// Drawing

const view = () => ({
  session, tokenizer, layer, head, select,
  query: selected ?? session.tokens.length - 1,
  distribution: distribution(),
  greedy: $("greedy").checked,
});

function select(position) {
  selected = position === selected || position === session.tokens.length - 1 ? null : position;
  render();
}

let asked = false;
function render() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    showControls();
    const seen = view();
    for (const show of [showTokens, showMatrix, showReader, showRing, showStream, showNext]) {
      show(seen);
    }
  });
}

function showControls() {
  const { W } = session.model;
  const whole = W === model.W;
  $("window-value").textContent = Number.isFinite(W)
    ? `${W}${whole ? "" : ` of ${Number.isFinite(model.W) ? model.W : "all"}`}`
    : "all";
  for (const name of OPTIONS) {
    const value = Number($(name).value);
    const off = (name === "top_k" || name === "min_p") && value === 0;
    $(name).previousElementSibling.querySelector("output").textContent = off ? "off" : value;
    $(name).disabled = $("greedy").checked && name !== "repetition_penalty";
  }
}

// Controls

let typing = 0;
$("prompt").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(start, 150);
});
$("step").addEventListener("click", () => {
  job++;
  selected = null;
  step();
  settle();
  render();
});
$("play").addEventListener("click", () => {
  if (state() === "playing") {
    job++;
    settle();
    render();
  } else play();
});
$("reset").addEventListener("click", start);
$("window").addEventListener("input", async () => {
  const playing = state() === "playing" || resuming;
  resuming = playing;
  if (await run(wanted)) {
    resuming = false;
    if (playing) play();
  }
});
for (const id of [...OPTIONS, "greedy"]) {
  $(id).addEventListener("input", () => session && render());
}
$("seed").addEventListener("change", () => (random = makeRandom(Number($("seed").value))));
$("matrix").addEventListener("mousemove", (event) => {
  if (session) $("matrix").title = describeCell(event, { session, tokenizer, layer, head });
});
$("matrix").addEventListener("click", (event) => {
  const [query] = cellAt(event);
  if (session?.tokens[query]) select(query);
});
$("tokens").addEventListener("keydown", (event) => {
  if (!session) return;
  const last = session.tokens.length - 1;
  const first = Math.max(0, session.tokens.length - SHOWN);
  const now = selected ?? last;
  const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: first, End: last, Escape: last };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const to = Math.max(first, Math.min(last, moves[event.key]));
  selected = to === last ? null : to;
  render();
  $(`token-${to}`)?.scrollIntoView({ block: "nearest" });
});
addEventListener("resize", () => session && render());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => session && render());

open().catch((error) => {
  setState("failed", `This page cannot run here: ${error.message}`);
  throw error;
});
