// The golden suite computed by the page's JavaScript, under Node.js, with no package and no Python:
//
//   golden run --command "node golden.mjs {case} {out} TOKENIZER.MODEL ..." -o dump
//
// It is started once for each case. The files after {out} are for the tokenizer cases; the one
// with the case's checksum is used. For a case that is not done here it writes nothing.

import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { forward, logits, makeCache, openModel } from "./core.js";
import { readSafetensors } from "./safetensors.js";
import { argmax, process as processed, softmax } from "./sampling.js";
import { Tokenizer } from "./tokenizer.js";

const [folder, out, ...tokenizers] = process.argv.slice(2);
if (!out) {
  console.error("usage: node golden.mjs CASE OUT [TOKENIZER.MODEL ...]");
  process.exit(2);
}
const readJson = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const readTensors = (name) => readSafetensors(readFileSync(join(folder, name)));
const aCase = readJson("case.json");

function writeSafetensors(path, tensors) {
  const header = {};
  let offset = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [offset, (offset += 8 * data.length)] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  const arrays = Object.values(tensors).map(({ data }) => Buffer.from(data.buffer));
  writeFileSync(path, Buffer.concat([size, text, ...arrays]));
}

const float64 = (shape, data) => ({ dtype: "F64", shape, data: Float64Array.from(data) });
const zeros = (shape) => float64(shape, new Float64Array(shape.reduce((n, size) => n * size, 1)));
const rowsOf = ({ shape: [rows, columns], data }) =>
  Array.from({ length: rows }, (_, row) => [...data.slice(row * columns, (row + 1) * columns)]);

function readModel() {
  if (!existsSync(join(folder, "model", "config.json"))) return null; // the raw layout
  return openModel(readJson("model/config.json"), readTensors("model/model.safetensors"));
}

// Every stage of every call; the calls of a case follow each other, with one cache for each row.
function modelCase() {
  const model = readModel();
  if (!model) return null;
  const inputs = readTensors("inputs.safetensors");
  const { layers, H, K, d, V, D, F } = model;
  const sizes = { H, K, d, V, D, F };
  const SHAPES = { embedding: "D", norm: "D", logits: "V", q: "Hd", k: "Kd", v: "Kd",
    q_rotated: "Hd", k_rotated: "Kd", attention_mix: "Hd", gate: "F", up: "F", silu_mul: "F" };
  const rows = inputs["calls.0.input_ids"].shape[0];
  const caches = Array.from({ length: rows }, () => makeCache(model));
  const seen = caches.map(() => []); // the positions of each row's tokens so far
  const results = {};
  for (let call = 0; call < aCase.calls; call++) {
    const ids = rowsOf(inputs[`calls.${call}.input_ids`]);
    const positions = rowsOf(inputs[`calls.${call}.positions`]);
    const tensor = (stage, shape) => (results[`calls.${call}.${stage}`] ??= zeros(shape));
    const T = ids[0].length;
    const S = inputs[`calls.${call}.key_positions`].shape[1];
    ids.forEach((row, b) => row.forEach((id, t) => {
      const position = positions[b][t];
      if (position < 0) return; // padding, which is not compared
      seen[b].push(position);
      const show = (stage, array) => {
        const name = stage.split(".").at(-1);
        if (name === "attention_weights") {
          // Over slots -> over the row's tokens in their order; overwritten ones have weight 0.
          const { data } = tensor(stage, [rows, H, T, S]);
          const slots = caches[b].positions;
          for (let h = 0; h < H; h++) {
            slots.forEach((held, slot) => {
              const column = seen[b].indexOf(held);
              data[((b * H + h) * T + t) * S + column] = array[h * slots.length + slot];
            });
          }
        } else {
          const shape = [...(SHAPES[name] ?? "D")].map((letter) => sizes[letter]);
          tensor(stage, [rows, T, ...shape]).data.set(array, (b * T + t) * array.length);
        }
      };
      show("logits", logits(forward(id, position, model, caches[b], show), model));
    }));
    const kept = rowsOf(inputs[`calls.${call}.cache_positions`]);
    for (let n = 0; n < layers; n++) {
      for (const name of ["k", "v"]) {
        const { data } = tensor(`cache.layers.${n}.${name}`, [rows, kept[0].length, K, d]);
        kept.forEach((row, b) => row.forEach((position, s) => {
          const slot = caches[b].positions.indexOf(position);
          if (slot >= 0) data.set(caches[b][name][n][slot], (b * row.length + s) * K * d);
        }));
      }
    }
  }
  return results;
}

// The likeliest token again and again; padding on the left is left out.
function generateCase() {
  const model = readModel();
  if (!model) return null;
  const inputs = readTensors("inputs.safetensors");
  const masks = rowsOf(inputs.attention_mask);
  const count = aCase.parameters.max_new_tokens;
  const logprobs = [];
  const sequences = rowsOf(inputs.input_ids).map((row, b) => {
    const cache = makeCache(model);
    let last;
    row.filter((_, t) => masks[b][t]).forEach((id, t) => (last = forward(id, t, model, cache)));
    for (let made = 0; made < count; made++) {
      const scores = logits(last, model);
      const id = argmax(scores);
      logprobs.push(Math.log(softmax(scores)[id]));
      row.push(id);
      if (made + 1 < count) last = forward(id, cache.count, model, cache);
    }
    return row;
  });
  const ids = BigInt64Array.from(sequences.flat(), BigInt);
  return {
    sequences: { dtype: "I64", shape: [sequences.length, sequences[0].length], data: ids },
    logprobs: float64([sequences.length, count], logprobs),
  };
}

function samplingCase() {
  const { logits: given, previous_ids: previous } = readTensors("inputs.safetensors");
  const previousRows = rowsOf(previous);
  const rows = rowsOf(given).flatMap((row, b) => {
    const scores = processed(Float64Array.from(row), new Set(previousRows[b]), aCase.parameters);
    return [...softmax(scores)];
  });
  return { probabilities: float64(given.shape, rows) };
}

function tokenizerCase() {
  const hash = (bytes) => createHash("sha256").update(bytes).digest("hex");
  const models = tokenizers.map((path) => readFileSync(path));
  const model = models.find((bytes) => hash(bytes) === aCase.vocabulary.sha256);
  if (!model) return;
  const tokenizer = new Tokenizer(model);
  const { strings, decodings } = readJson("inputs.json");
  const results = {
    strings: strings.map(({ text }) => {
      const ids = tokenizer.encode(text);
      return { text, ids, decoded: tokenizer.decode(ids) };
    }),
    decodings: decodings.map(({ ids }) => ({ ids, decoded: tokenizer.decode(ids) })),
  };
  writeFileSync(join(out, "results.json"), JSON.stringify(results));
}

const KINDS = { model: modelCase, generate: generateCase, sampling: samplingCase };
if (aCase.kind === "tokenizer") tokenizerCase();
else if (aCase.kind in KINDS) {
  const results = KINDS[aCase.kind]();
  if (results) writeSafetensors(join(out, "results.safetensors"), results);
}
