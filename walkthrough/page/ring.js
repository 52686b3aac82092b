// The ring of slots of the cache.

import { $, make } from "./dom.js";

const polar = (radius, turn) => {
  const angle = 2 * Math.PI * (turn - 0.25); // turn 0 is at the top
  return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
};

function arc(inner, outer, from, to) {
  const large = to - from > 0.5 ? 1 : 0;
  return `M ${polar(outer, from)} A ${outer} ${outer} 0 ${large} 1 ${polar(outer, to)} `
    + `L ${polar(inner, to)} A ${inner} ${inner} 0 ${large} 0 ${polar(inner, from)} Z`;
}

let ring = { slots: 0 };
function makeRing(slots) {
  const every = Math.ceil(slots / 64); // slots with a label
  const at = (n) => (n + 0.5) / slots;
  const place = (n, radius) => {
    const degrees = 360 * at(n) - 90;
    const flip = degrees > 90;
    return { transform: `rotate(${degrees}) translate(${radius} 0) rotate(${flip ? 180 : 0})`,
      "text-anchor": flip ? "end" : "start" };
  };
  $("ring").setAttribute("class", slots > 96 ? "fine" : slots > 24 ? "many" : "few");
  ring = { slots, every, parts: [], pointer: make("path", { class: "pointer" }) };
  for (let n = 0; n < slots; n++) {
    const end = slots === 1 ? 0.9999 : (n + 1) / slots;
    const path = make("path", { d: arc(112, 150, n / slots, end), "data-slot": n });
    const [x, y] = polar(131, at(n)).split(" ");
    const turned = slots > 40 ? { transform: `rotate(${360 * at(n) - 90} ${x} ${y})` } : {};
    if (slots > 40 && at(n) > 0.5) turned.transform = `rotate(${360 * at(n) + 90} ${x} ${y})`;
    const position = make("text", { class: "position", x, y, ...turned });
    const label = make("text", { class: "label", ...place(n, 156) });
    ring.parts.push({ path, position, label });
  }
  ring.texts = [["mid", -34], ["big", 4], ["mid", 32]].map(([name, y]) => make("text", { class: name, y }));
  $("ring").replaceChildren(
    ...ring.parts.map(({ path }) => path), // under all texts
    ...ring.parts.flatMap(({ position, label }) => [position, label]),
    ring.pointer, ...ring.texts,
  );
}

export function showRing({ session, tokenizer }) {
  const { cache, tokens, model: { W } } = session;
  const { count, positions } = cache;
  const windowed = Number.isFinite(W);
  const slots = windowed ? W : 2 ** Math.ceil(Math.log2(Math.max(16, count + 1)));
  if (slots !== ring.slots) makeRing(slots);
  const pieceIn = (slot) => tokenizer.shown(tokens[positions[slot]].id);
  ring.parts.forEach(({ path, position, label }, slot) => {
    const held = positions[slot] ?? -1;
    const age = held < 0 ? 0 : (count - 1 - held) / Math.max(1, Math.min(slots, count));
    const newest = held === count - 1;
    const near = Math.abs(held - count + 1) < 5; // its number would touch the newest one's
    const shown = slots <= 96 || newest || (slot % (4 * ring.every) === 0 && !near);
    path.dataset.position = held;
    path.setAttribute("class", held < 0 ? "" : newest ? "newest" : "held");
    path.style.setProperty("--age", (0.85 - 0.72 * age).toFixed(3));
    position.textContent = held >= 0 && shown ? held : "";
    position.classList.toggle("light", newest || (held >= 0 && age < 0.3));
    const labelled = held >= 0 && (slot % ring.every === 0 || newest);
    label.textContent = labelled ? short(pieceIn(slot), slots > 24 ? 9 : 7) : "";
    label.classList.toggle("now", newest);
  });
  const next = windowed ? count % W : count;
  const tip = (next + 0.5) / slots;
  ring.pointer.setAttribute("d", `M ${polar(109, tip)} L ${polar(94, tip - 0.012)} L ${polar(94, tip + 0.012)} Z`);
  const [above, middle, below] = ring.texts;
  above.textContent = `token ${count} goes to`;
  middle.textContent = `slot ${next}`;
  below.textContent = windowed ? `${count} mod ${W}` : "no window: it grows";
  const over = positions[next];
  $("slot").replaceChildren(...(over === undefined
    ? [`${count} of ${slots} slots are filled.`]
    : [`Full: the next token overwrites position ${over}, `, make("code", {}, pieceIn(next)), "."]));
  $("ring").setAttribute("aria-label", `Ring of ${slots} slots. ${$("slot").textContent}`);
}

const short = (piece, most) => (piece.length > most ? `${piece.slice(0, most - 1)}…` : piece);
