// A whole Mistral in plain JavaScript, with no package and no Python, held against golden outputs.
//
//   node mistral.mjs SUITE OUT
//
// SUITE is the folder of a suite (`tinymistral golden list` says where v1 is). For each of its
// cases of kind "model" this computes every stage and writes OUT/CASE.safetensors, which
// `tinymistral golden check` compares. One line below is wrong on purpose.
//
// B rows, T new tokens, D width, H query heads over K key/value heads of width d, F, V, W: as in
// every table of stages.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

// safetensors: 8 bytes that say how long the JSON header is, the header, the numbers.

const READERS = {
  F64: (bytes) => new Float64Array(bytes),
  F32: (bytes) => Float64Array.from(new Float32Array(bytes)),
  BF16: (bytes) => Float64Array.from(new Uint16Array(bytes), fromBfloat16),
  I64: (bytes) => Float64Array.from(new BigInt64Array(bytes), Number),
};

function fromBfloat16(bits) {
  const word = new Uint32Array([bits << 16]); // a float32 whose last 16 bits are missing
  return new Float32Array(word.buffer)[0];
}

function readSafetensors(path) {
  const file = readFileSync(path);
  const size = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + size));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [start, stop] = offsets.map((offset) => 8 + size + offset);
    const bytes = new Uint8Array(file.subarray(start, stop)).buffer; // a copy, which is aligned
    tensors[name] = { shape, data: READERS[dtype](bytes) };
  }
  return tensors;
}

function writeSafetensors(path, tensors) {
  const header = {};
  let offset = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [offset, (offset += 4 * data.length)] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  const arrays = Object.values(tensors).map(({ data }) => Buffer.from(Float32Array.from(data).buffer));
  writeFileSync(path, Buffer.concat([size, text, ...arrays]));
}

// The operations, on one token: arrays of numbers.

function linear(x, weight) {
  const [m, n] = weight.shape;
  const out = new Float64Array(m);
  for (let row = 0; row < m; row++) {
    for (let i = 0; i < n; i++) out[row] += weight.data[row * n + i] * x[i];
  }
  return out;
}

function rmsNorm(x, weight, eps) {
  const meanSquare = x.reduce((sum, number) => sum + number * number, 0) / x.length;
  return x.map((number, i) => (number / Math.sqrt(meanSquare + eps)) * weight.data[i]);
}

function rope(x, d, position, theta) {
  const out = new Float64Array(x.length);
  for (let head = 0; head < x.length; head += d) {
    for (let m = 0; m < d / 2; m++) {
      const angle = position * theta ** ((-2 * m) / d);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      const [first, second] = [x[head + m], x[head + m + d / 2]];
      out[head + m] = first * cos - second * sin;
      out[head + m + d / 2] = second * cos + first * sin;
    }
  }
  return out;
}

// `tokens` are those of this row so far: their positions, keys and values.
function attention(q, position, tokens, { H, K, d, W }) {
  const out = new Float64Array(H * d);
  const seen = tokens.filter((token) => token.position <= position && position - token.position < W);
  for (let h = 0; h < H; h++) {
    const kvHead = h % K; // wrong on purpose; right is Math.floor(h / (H / K))
    const part = (array) => array.subarray(kvHead * d, (kvHead + 1) * d);
    const scores = seen.map(({ k }) =>
      part(k).reduce((sum, number, i) => sum + number * q[h * d + i], 0) / Math.sqrt(d));
    const largest = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - largest));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    seen.forEach(({ v }, s) => {
      part(v).forEach((number, i) => (out[h * d + i] += (weights[s] / total) * number));
    });
  }
  return out;
}

const silu = (x) => x / (1 + Math.exp(-x));
const add = (x, y) => x.map((number, i) => number + y[i]);

// One token of one row, through all layers; `show` is given each stage.
function forward(id, position, model, caches, show) {
  const { weights, layers, D, eps, theta } = model;
  const norm = (x, name) => rmsNorm(x, weights[name], eps);
  const embedding = weights["model.embed_tokens.weight"];
  let x = embedding.data.slice(id * D, (id + 1) * D);
  show("embedding", x);
  for (let n = 0; n < layers; n++) {
    const see = (name, array) => show(`layers.${n}.${name}`, array);
    const weight = (name) => weights[`model.layers.${n}.${name}.weight`];

    const normed = norm(x, `model.layers.${n}.input_layernorm.weight`);
    const [q, k, v] = ["q", "k", "v"].map((p) => linear(normed, weight(`self_attn.${p}_proj`)));
    const [qRotated, kRotated] = [q, k].map((array) => rope(array, model.d, position, theta));
    caches[n].push({ position, k: kRotated, v });
    const mix = attention(qRotated, position, caches[n], model);
    const attentionOutput = linear(mix, weight("self_attn.o_proj"));
    const residual = add(x, attentionOutput);

    const normedAgain = norm(residual, `model.layers.${n}.post_attention_layernorm.weight`);
    const gate = linear(normedAgain, weight("mlp.gate_proj"));
    const up = linear(normedAgain, weight("mlp.up_proj"));
    const product = gate.map((number, i) => silu(number) * up[i]);
    const mlpOutput = linear(product, weight("mlp.down_proj"));
    x = add(residual, mlpOutput);

    see("input_layernorm", normed);
    see("q", q);
    see("k", k);
    see("v", v);
    see("q_rotated", qRotated);
    see("k_rotated", kRotated);
    see("attention_mix", mix);
    see("attention_output", attentionOutput);
    see("attention_residual", residual);
    see("post_attention_layernorm", normedAgain);
    see("gate", gate);
    see("up", up);
    see("silu_mul", product);
    see("mlp_output", mlpOutput);
    see("output", x);
  }
  const last = norm(x, "model.norm.weight");
  show("norm", last);
  show("logits", linear(last, model.tied ? embedding : weights["lm_head.weight"]));
}

// A suite: models and cases.

function openManifest(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    console.error(`mistral.mjs: ${path} is not the manifest of a suite: ${error.message}`);
    process.exit(2);
  }
}

function openModel(folder, { file, config }) {
  return {
    weights: readSafetensors(join(folder, file)),
    layers: config.num_hidden_layers,
    D: config.hidden_size,
    H: config.num_attention_heads,
    K: config.num_key_value_heads,
    d: config.head_dim,
    W: config.sliding_window ?? Infinity,
    eps: config.rms_norm_eps,
    theta: config.rope_parameters.rope_theta,
    tied: config.tie_word_embeddings,
  };
}

// The calls of a case follow each other, with one cache for each row and layer.
function runCase(folder, aCase, model) {
  const tensors = readSafetensors(join(folder, aCase.file));
  const shapeOf = (name) => tensors[`expected.${name}`].shape;
  const rows = tensors["inputs.calls.0.input_ids"].shape[0];
  const cachesOfRows = Array.from({ length: rows }, () => Array.from({ length: model.layers }, () => []));
  const dump = {};
  for (let call = 0; call < aCase.calls; call++) {
    const ids = tensors[`inputs.calls.${call}.input_ids`];
    const positions = tensors[`inputs.calls.${call}.positions`];
    ids.data.forEach((id, at) => {
      if (positions.data[at] < 0) return; // padding, which is not compared
      const caches = cachesOfRows[Math.floor(at / ids.shape[1])];
      forward(id, positions.data[at], model, caches, (stage, array) => {
        const name = `calls.${call}.${stage}`;
        const shape = shapeOf(name);
        const size = shape.reduce((product, length) => product * length, 1);
        dump[name] ??= { shape, data: new Float64Array(size) };
        dump[name].data.set(array, at * array.length);
      });
    });
  }
  return dump;
}

const [folder, out] = process.argv.slice(2);
if (!out) {
  console.error("usage: node mistral.mjs SUITE OUT");
  process.exit(2);
}
const manifest = openManifest(join(folder, "manifest.json"));
const models = Object.fromEntries(manifest.models.map((model) => [model.id, model]));
mkdirSync(out, { recursive: true });
for (const aCase of manifest.cases.filter(({ kind }) => kind === "model")) {
  const entry = models[aCase.model];
  if (entry.layout !== "hf" || entry.dtype === "float16") continue; // not done here
  writeSafetensors(join(out, `${aCase.id}.safetensors`), runCase(folder, aCase, openModel(folder, entry)));
  console.log(aCase.id);
}
