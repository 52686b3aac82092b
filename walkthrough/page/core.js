// The forward pass of Mistral in float64, one token at a time: tinymistral/model.py in JavaScript.
//
// D model width, F feed-forward width, H query heads, K key/value heads, d head width,
// V vocabulary, W window. A weight is { shape, data }, by its name in the checkpoint.

export function openModel(config, weights) {
  return {
    weights,
    layers: config.num_hidden_layers,
    D: config.hidden_size,
    F: config.intermediate_size,
    H: config.num_attention_heads,
    K: config.num_key_value_heads,
    d: config.head_dim,
    V: config.vocab_size,
    W: config.sliding_window ?? Infinity,
    eps: config.rms_norm_eps,
    theta: config.rope_parameters.rope_theta,
    tied: config.tie_word_embeddings,
  };
}

// A ring of W slots: token n of a text, counted from 0, goes to slot n % W. `positions` says which
// token a slot holds; `k[n][slot]` and `v[n][slot]` are its key and value of layer n, (K·d).
export function makeCache({ layers }) {
  const perLayer = () => Array.from({ length: layers }, () => []);
  return { count: 0, positions: [], k: perLayer(), v: perLayer() };
}

// A weight (rows, columns) times x (columns) -> (rows). Four sums at a time, because each addition
// has to wait for the one before it.
export function linear(x, { data, shape: [rows, columns] }) {
  const out = new Float64Array(rows);
  for (let row = 0, at = 0; row < rows; row++) {
    let sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0, i = 0;
    for (; i + 4 <= columns; i += 4, at += 4) {
      sum0 += data[at] * x[i];
      sum1 += data[at + 1] * x[i + 1];
      sum2 += data[at + 2] * x[i + 2];
      sum3 += data[at + 3] * x[i + 3];
    }
    for (; i < columns; i++, at++) sum0 += data[at] * x[i];
    out[row] = sum0 + sum1 + sum2 + sum3;
  }
  return out;
}

export function rmsNorm(x, { data }, eps) {
  const meanSquare = x.reduce((sum, number) => sum + number * number, 0) / x.length;
  return x.map((number, i) => (number / Math.sqrt(meanSquare + eps)) * data[i]);
}

// The cosine and sine of each pair's angle at a position, (d/2) each.
function ropeTable(position, { d, theta }) {
  const angles = Float64Array.from({ length: d / 2 }, (_, m) => position * theta ** ((-2 * m) / d));
  return [angles.map(Math.cos), angles.map(Math.sin)];
}

// Rotate each head of x: pair m is (x[m], x[m + d/2]).
function rope(x, [cos, sin]) {
  const out = new Float64Array(x.length);
  const half = cos.length;
  for (let head = 0; head < x.length; head += 2 * half) {
    for (let m = 0; m < half; m++) {
      const first = x[head + m];
      const second = x[head + m + half];
      out[head + m] = first * cos[m] - second * sin[m];
      out[head + m + half] = second * cos[m] + first * sin[m];
    }
  }
  return out;
}

// The one rule of windows and causality; an empty slot has position -1.
export const visible = (query, key, W) => key >= 0 && 0 <= query - key && query - key < W;

// Queries (H·d) of the token at a position -> the mix of visible values (H·d), and the weights
// of all slots (H, slots), which are 0 where a key is not visible.
function attention(q, position, { positions }, keys, values, { H, K, d, W }) {
  const slots = positions.map((_, slot) => slot).filter((s) => visible(position, positions[s], W));
  const mix = new Float64Array(H * d);
  const weights = new Float64Array(H * positions.length);
  for (let h = 0; h < H; h++) {
    const kvHead = Math.floor(h / (H / K));
    const scores = slots.map((slot) => {
      let score = 0;
      for (let i = 0; i < d; i++) score += q[h * d + i] * keys[slot][kvHead * d + i];
      return score / Math.sqrt(d);
    });
    const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity); // exp cannot overflow
    const exps = scores.map((score) => Math.exp(score - largest));
    const total = exps.reduce((sum, exp) => sum + exp, 0);
    slots.forEach((slot, n) => {
      const weight = (weights[h * positions.length + slot] = exps[n] / total);
      for (let i = 0; i < d; i++) mix[h * d + i] += weight * values[slot][kvHead * d + i];
    });
  }
  return [mix, weights];
}

const silu = (x) => x / (1 + Math.exp(-x));
const add = (x, y) => x.map((number, i) => number + y[i]);

// Run a token through all layers -> the normed last state (D), of which `logits` makes (V).
// The stages go to `show(name, array)`, with the names of tinymistral/tap.py.
export function forward(id, position, model, cache, show = () => {}) {
  const { weights, layers, D, W, eps } = model;
  const embedding = weights["model.embed_tokens.weight"].data;
  const table = ropeTable(position, model);
  const slot = cache.count++ % W;
  cache.positions[slot] = position;
  let x = new Float64Array(embedding.subarray(id * D, (id + 1) * D));
  show("embedding", x);
  for (let n = 0; n < layers; n++) {
    const weight = (name) => weights[`model.layers.${n}.${name}.weight`];
    const see = (name, array) => {
      show(`layers.${n}.${name}`, array);
      return array;
    };
    const normed = see("input_layernorm", rmsNorm(x, weight("input_layernorm"), eps));
    const q = see("q", linear(normed, weight("self_attn.q_proj")));
    const k = see("k", linear(normed, weight("self_attn.k_proj")));
    const v = see("v", linear(normed, weight("self_attn.v_proj")));
    const qRotated = see("q_rotated", rope(q, table));
    cache.k[n][slot] = see("k_rotated", rope(k, table)); // write, then attend
    cache.v[n][slot] = v;
    const [mix, perSlot] = attention(qRotated, position, cache, cache.k[n], cache.v[n], model);
    see("attention_weights", perSlot);
    see("attention_mix", mix);
    x = add(x, see("attention_output", linear(mix, weight("self_attn.o_proj"))));
    see("attention_residual", x);

    const again = rmsNorm(x, weight("post_attention_layernorm"), eps);
    see("post_attention_layernorm", again);
    const gate = see("gate", linear(again, weight("mlp.gate_proj")));
    const up = see("up", linear(again, weight("mlp.up_proj")));
    const product = see("silu_mul", gate.map((number, i) => silu(number) * up[i]));
    x = add(x, see("mlp_output", linear(product, weight("mlp.down_proj"))));
    see("output", x);
  }
  const last = rmsNorm(x, weights["model.norm.weight"], eps);
  show("norm", last);
  return last;
}

export function logits(last, { weights, tied }) {
  return linear(last, weights[tied ? "model.embed_tokens.weight" : "lm_head.weight"]);
}
