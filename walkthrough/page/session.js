// A text that goes through the model token by token, and what of it is shown.

import { forward, logits, makeCache } from "./core.js";

const KEPT = 512; // tokens whose attention weights are kept

const lengthOf = (x) => Math.sqrt(x.reduce((sum, number) => sum + number * number, 0));

export class Session {
  // `window` may be smaller than the model's own. Then the text also goes through with the whole
  // window, to compare.
  constructor(model, window) {
    this.whole = window < model.W ? { model, cache: makeCache(model) } : null;
    this.model = { ...model, W: window };
    this.cache = makeCache(model);
    this.tokens = []; // { id, made, lengths, attention }; the place in it is the position
  }

  // Run one more token; `made` says that the model generated it.
  advance(id, made) {
    const position = this.tokens.length;
    const lengths = []; // of the residual stream: embedding, then after each attention and MLP
    const attention = []; // by layer: weights (H, keys) of the keys from `firstKey` on
    const show = (stage, array) => {
      if (/embedding|attention_residual|\d\.output/.test(stage)) lengths.push(lengthOf(array));
      if (stage.endsWith("attention_weights")) attention.push(this.inTokenOrder(array, position));
    };
    this.last = forward(id, position, this.model, this.cache, show);
    if (this.whole) this.lastOfWhole = forward(id, position, this.whole.model, this.whole.cache);
    this.tokens.push({ id, made, lengths, attention });
    const old = this.tokens[position - KEPT];
    if (old) old.attention = null;
  }

  // The oldest position whose key the token at a position reads.
  firstKey(position) {
    return Math.max(0, position - this.model.W + 1);
  }

  // The oldest position that can change anything at a position: a layer reads W - 1 back.
  firstReached(position) {
    return Math.max(0, position - this.model.layers * (this.model.W - 1));
  }

  // Weights of all slots (H, slots) -> of the keys that are read (H, keys), the oldest first.
  inTokenOrder(perSlot, position) {
    const { H, W } = this.model;
    const slots = this.cache.positions.length;
    const first = this.firstKey(position);
    const keys = position - first + 1;
    const out = new Float32Array(H * keys);
    for (let h = 0; h < H; h++) {
      for (let n = 0; n < keys; n++) out[h * keys + n] = perSlot[h * slots + ((first + n) % W)];
    }
    return out;
  }

  // What the token at a position reads: weights by key, from `firstKey` on; null if forgotten.
  weights(position, layer, head) {
    const attention = this.tokens[position].attention?.[layer];
    if (!attention) return null;
    const keys = attention.length / this.model.H;
    return attention.subarray(head * keys, (head + 1) * keys);
  }

  logits() {
    return logits(this.last, this.model);
  }

  // With the whole window; null where that is the window.
  logitsOfWhole() {
    return this.whole && logits(this.lastOfWhole, this.whole.model);
  }
}
