// What the page shows of a session. Each function takes the view: the session, its tokenizer, the
// position `query` that is looked at, and the chosen `layer` and `head`.

import { $, make, number, percent, withSpaces } from "./dom.js";
import { softmax } from "./sampling.js";

export const SHOWN = 400; // tokens, at most
const ROWS = 16; // likeliest tokens
const NAMES = { top_k: "top-k", top_p: "top-p", min_p: "min-p" };

// Chips are made once for each token; afterwards only their classes change.
let chips = { session: null, from: 0, list: [] };
export function showTokens({ session, tokenizer, query, select }) {
  const { tokens, model: { layers } } = session;
  const from = Math.max(0, tokens.length - SHOWN);
  const box = $("tokens");
  if (chips.session !== session) {
    chips = { session, from, list: [] };
    box.replaceChildren(make("span", { class: "earlier", hidden: "" }));
  }
  const toEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  while (chips.from < from) {
    chips.list.shift().remove();
    chips.from++;
  }
  for (let n = chips.from + chips.list.length; n < tokens.length; n++) {
    chips.list.push(makeChip(session.tokens[n], n, tokenizer, select));
    box.append(chips.list.at(-1));
  }
  box.firstChild.hidden = from === 0;
  box.firstChild.textContent = `${number(from)} earlier …`;
  const [read, reached] = [session.firstKey(query), session.firstReached(query)];
  chips.list.forEach((chip, at) => {
    const position = chips.from + at;
    const lost = position < reached;
    const gone = position < read && !lost;
    if (gone !== chip.classList.contains("gone")) chip.classList.toggle("gone");
    if (lost !== chip.classList.contains("lost")) chip.classList.toggle("lost");
    const future = position > query;
    if (future !== chip.classList.contains("future")) chip.classList.toggle("future");
    if (chip.ariaSelected !== String(position === query)) chip.ariaSelected = position === query;
  });
  box.setAttribute("aria-activedescendant", `token-${query}`);
  if (toEnd && query === tokens.length - 1) box.scrollTop = box.scrollHeight;
  const { id } = tokens[query];
  const reach = reached < read
    ? ` Through ${layers} layers it can know of tokens back to position ${reached}.`
    : "";
  $("chosen").replaceChildren(
    `Position ${query}: token `, make("code", {}, tokenizer.shown(id)), `, id ${id}. It reads `,
    `${query - read + 1} ${query === read ? "key" : "keys"}, of positions ${read} to ${query}.`,
    reach,
  );
}

function makeChip({ id, made }, position, tokenizer, select) {
  const byte = tokenizer.isByte(id);
  const kind = byte ? "byte" : tokenizer.isSpecial(id) ? "special" : "";
  const chip = make(
    "span",
    {
      class: `token ${made ? "made" : "typed"} ${kind}`, id: `token-${position}`, role: "option",
      "data-id": id, style: `background: var(--piece-${position % 5})`,
      "aria-label": `${byte ? "byte " : ""}${tokenizer.shown(id)}, id ${id}, position ${position}`,
    },
    make("b", {}, ...withSpaces(tokenizer.shown(id))),
    make("i", {}, String(id)),
  );
  chip.addEventListener("click", () => select(position));
  return chip;
}

// Rows are queries, columns are keys, both `size` positions from `from` on.
let matrix = { from: 0, size: 1 };
export function showMatrix({ session, query, layer, head }) {
  const { tokens, model: { W } } = session;
  const most = Math.min(320, Math.max(64, Number.isFinite(W) ? Math.ceil(1.4 * W) : 0));
  const size = Math.min(most, Math.max(tokens.length, 12));
  const newest = Math.max(0, tokens.length - size);
  const from = query >= newest ? newest : Math.max(0, query - size + 1);
  matrix = { from, size };
  const canvas = $("matrix");
  const cell = Math.max(2, Math.floor((canvas.clientWidth * (devicePixelRatio || 1)) / size));
  canvas.width = canvas.height = cell * size;
  const context = canvas.getContext("2d");
  const colors = getComputedStyle(document.documentElement);
  const [gone, accent, warm] = ["--gone", "--accent", "--warm"].map((n) => colors.getPropertyValue(n));
  for (let row = 0; row < size && from + row < tokens.length; row++) {
    const position = from + row;
    const read = session.firstKey(position);
    context.globalAlpha = 1;
    context.fillStyle = gone;
    if (read > from) context.fillRect(0, row * cell, (read - from) * cell, cell);
    context.fillStyle = accent;
    session.weights(position, layer, head)?.forEach((weight, n) => {
      const column = read + n - from;
      if (column < 0) return;
      context.globalAlpha = Math.sqrt(weight); // so that small ones are seen
      context.fillRect(column * cell, row * cell, cell, cell);
    });
  }
  context.globalAlpha = 1;
  context.strokeStyle = warm;
  context.lineWidth = Math.max(2, cell / 8);
  const row = (query - from) * cell;
  context.strokeRect(1, row, (query - from + 1) * cell - 1, cell);
  canvas.setAttribute("aria-label", `Attention weights of layer ${layer}, head ${head}: rows are `
    + `queries, columns are keys, positions ${from} to ${Math.min(from + size, tokens.length) - 1}`);
}

// The query and the key under the mouse.
export function cellAt(event) {
  const box = $("matrix").getBoundingClientRect();
  const place = (at, length) => matrix.from + Math.floor((at / length) * matrix.size);
  return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
}

export function describeCell(event, { session, tokenizer, layer, head }) {
  const [query, key] = cellAt(event);
  if (!session.tokens[query] || key > query || key < 0) return "";
  const from = session.firstKey(query);
  const weight = session.weights(query, layer, head)?.[key - from];
  const says = key < from ? "outside the window" : weight?.toFixed(3) ?? "";
  const at = (n) => `${tokenizer.shown(session.tokens[n].id)} (${n})`;
  return `${at(query)} reads ${at(key)}: ${says}`;
}

// What one token reads: the keys with the largest weights, and the text shaded by weight.
export function showReader({ session, tokenizer, query, layer, head }) {
  const { tokens, model: { H, K } } = session;
  const group = H / K;
  const first = Math.floor(head / group) * group;
  const others = group > 1 ? `, as do all of query heads ${first} to ${first + group - 1}` : "";
  $("shared").textContent = `Query head ${head} reads key/value head ${first / group}${others}.`;
  if (K < H) $("shared").append(" ", chapterLink("05_grouped_heads", "Chapter 5"));
  const weights = session.weights(query, layer, head);
  const read = session.firstKey(query);
  $("reader").replaceChildren(
    make("code", {}, tokenizer.shown(tokens[query].id)),
    weights ? ` (position ${query}) reads most of:` : " is too far back: its weights are gone.",
  );
  const order = [...(weights?.keys() ?? [])].sort((a, b) => weights[b] - weights[a]).slice(0, 5);
  $("most").replaceChildren(...order.map((n) => {
    const bar = make("div", { class: "bar" });
    bar.append(make("div", { class: "after", style: `width: ${100 * weights[n]}%` }));
    const piece = make("span", { class: "piece" }, ...withSpaces(tokenizer.shown(tokens[read + n].id)));
    const value = make("span", { class: "number" }, weights[n].toFixed(3));
    return make("li", { "data-position": read + n, title: `position ${read + n}` }, piece, bar, value);
  }));
  const from = Math.max(0, read - 40, query - 360);
  const spans = tokens.slice(from, query + 1).map(({ id }, n) => {
    const byte = tokenizer.isByte(id) ? " hex" : "";
    const position = from + n;
    const weight = position < read ? 0 : Math.sqrt(weights?.[position - read] ?? 0);
    const kind = position < read ? "gone" : weight > 0.65 ? "strong" : "";
    const reader = position === query ? " reader" : "";
    const text = byte ? tokenizer.shown(id).slice(2) : tokenizer.shown(id).replaceAll("\u2581", " ");
    return make("span", { class: kind + reader + byte, style: `--w: ${weight.toFixed(3)}` }, text);
  });
  $("heat").replaceChildren(from > 0 ? "… " : "", ...spans);
  $("heat").scrollTop = $("heat").scrollHeight;
}

// A link to a chapter as those in the page; only its name where they are no links.
function chapterLink(name, says) {
  const link = [...document.querySelectorAll("footer a")].find((a) => a.href.includes(name));
  return link ? make("a", { href: link.getAttribute("href") }, says) : make("span", {}, says);
}

export function showStream({ session, query }) {
  const { tokens, model: { layers } } = session;
  const [left, right, top, bottom] = [44, 406, 26, 288];
  const near = tokens.slice(Math.max(0, query - 47), query + 1).map(({ lengths }) => lengths);
  const own = tokens[query].lengths;
  const largest = Math.max(...near.flat()) * 1.04;
  const x = (n) => left + 8 + (n / (2 * layers)) * (right - left - 20);
  const y = (value) => bottom - (value / largest) * (bottom - top);
  const points = (lengths) => lengths.map((value, n) => `${x(n)},${y(value)}`).join(" ");
  const parts = [];
  const stepSize = niceStep(largest / 4);
  for (let value = 0; value <= largest; value += stepSize) {
    parts.push(make("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    const at = { class: "axis", x: left - 6, y: y(value) + 4, "text-anchor": "end" };
    parts.push(make("text", at, String(Number(value.toPrecision(3)))));
  }
  for (const lengths of near) parts.push(make("polyline", { class: "other", points: points(lengths) }));
  parts.push(make("polyline", { class: "this", points: points(own) }));
  own.forEach((value, n) => {
    const output = n % 2 === 0;
    const kind = output ? "" : "half";
    parts.push(make("circle", { class: kind, cx: x(n), cy: y(value), r: output ? 4 : 3 }));
    if (!output) return;
    parts.push(make("text", { class: "value", x: x(n), y: y(value) - 9 }, value.toPrecision(3)));
    const name = n === 0 ? "embedding" : `layer ${n / 2 - 1}`;
    const few = layers <= 6 || n === 0 || n === 2 * layers;
    const at = { class: "axis", x: x(n), y: bottom + 20, "text-anchor": "middle" };
    parts.push(make("text", at, few ? (n === 0 ? "embed" : name) : String(n / 2 - 1)));
  });
  $("stream").replaceChildren(...parts);
  const growth = own.at(-1) / own[0];
  $("lengths").textContent = `Bold: position ${query}, which grows ${growth.toFixed(1)} times. `
    + `Hollow: after attention; full: after the MLP. Faint: the tokens before it.`;
  $("stream").setAttribute("aria-label", `Length of the residual stream of position ${query}: `
    + own.map((value) => value.toPrecision(3)).join(", "));
}

function niceStep(size) {
  const power = 10 ** Math.floor(Math.log10(size));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= size) ?? 10);
}

// `distribution` has the probabilities before and after the options, which option cuts an id, and
// how many each leaves.
export function showNext({ session, tokenizer, distribution, greedy }) {
  const { before, after, cutBy, left } = distribution;
  const logitsOfWhole = session.logitsOfWhole();
  const whole = logitsOfWhole && softmax(logitsOfWhole);
  const order = [...before.keys()].sort((a, b) => before[b] - before[a] || a - b).slice(0, ROWS);
  const scale = Math.max(...order.flatMap((id) => [before[id], after[id], whole?.[id] ?? 0]));
  const bar = (name, p) => make("div", { class: name, style: `width: ${(100 * p) / scale}%` });
  $("next").replaceChildren(...order.map((id) => {
    const bars = make("div", { class: "bar" }, bar("before", before[id]), bar("after", after[id]));
    if (whole) bars.append(make("div", { class: "tick", style: `left: ${(100 * whole[id]) / scale}%` }));
    const gone = after[id] === 0;
    const [p, then] = [percent(before[id]), percent(after[id])];
    const value = make("span", { class: "number" }, gone || p === then ? `${p} %` : `${p} → ${then} %`);
    if (cutBy.has(id)) value.append(" ", make("span", { class: "tag" }, NAMES[cutBy.get(id)]));
    const data = { "data-id": id, "data-before": before[id], "data-after": after[id] };
    const piece = make("span", { class: "piece" }, ...withSpaces(tokenizer.shown(id)));
    return make("li", { class: gone ? "cut" : "", ...data }, piece, bars, value);
  }));
  $("tick-key").hidden = !whole;
  const size = Number.isFinite(session.whole?.model.W) ? `window of ${session.whole.model.W}` : "text";
  $("tick-says").textContent = `with the whole ${size}`;
  $("funnel").textContent = greedy
    ? "The likeliest token is taken each time; only the repetition penalty counts."
    : cuts(before, after, left);
}

function cuts(before, after, left) {
  const all = number(before.length);
  if (!left.length) return `Any of ${all} tokens may be drawn.`;
  const steps = left.map(([name, count]) => `${NAMES[name]} leaves ${number(count)}`).join(", ");
  const kept = before.reduce((sum, p, id) => sum + (after[id] > 0 ? p : 0), 0);
  return `Of ${all} tokens ${steps}. These had ${percent(kept)} % before.`;
}
