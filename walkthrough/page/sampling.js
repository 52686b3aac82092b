// From logits to the next token: the processors of tinymistral/sampling.py, in the same order.
// A token that may not be drawn has score -Infinity. A score is a float64.

export function softmax(scores) {
  const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = scores.map((score) => Math.exp(score - largest));
  const total = exps.reduce((sum, exp) => sum + exp, 0);
  return exps.map((exp) => exp / total);
}

// Positive scores of the tokens in `present`, a Set of ids, are divided, negative ones multiplied.
export function penalizeRepetition(scores, present, penalty) {
  return scores.map((score, id) => {
    if (!present.has(id)) return score;
    return score < 0 ? score * penalty : score / penalty;
  });
}

// Keep the k highest scores, and ties with the lowest of them.
export function keepTopK(scores, k) {
  const lowest = Float64Array.from(scores).sort().at(-Math.min(k, scores.length));
  return scores.map((score) => (score < lowest ? -Infinity : score));
}

// Keep the likeliest tokens that together reach probability p, at least one.
export function keepTopP(scores, p) {
  const probabilities = softmax(scores);
  const order = [...scores.keys()].sort((a, b) => scores[a] - scores[b] || 0); // -∞ − −∞ is NaN
  const kept = Float64Array.from(scores);
  let upToHere = 0;
  for (const id of order.slice(0, -1)) {
    upToHere += probabilities[id];
    if (upToHere <= 1 - p) kept[id] = -Infinity;
  }
  return kept;
}

// Keep tokens with at least p times the probability of the likeliest.
export function keepMinP(scores, p) {
  const probabilities = softmax(scores);
  const lowest = p * probabilities.reduce((a, b) => Math.max(a, b));
  return scores.map((score, id) => (probabilities[id] < lowest ? -Infinity : score));
}

// The processors that the options ask for; `show(name, scores)` is called after each.
export function process(logits, present, options, show = () => {}) {
  const { repetition_penalty: penalty, temperature, top_k, top_p, min_p } = options;
  let scores = logits;
  const apply = (name, next) => show(name, (scores = next));
  if ((penalty ?? 1) !== 1) {
    apply("repetition_penalty", penalizeRepetition(scores, present, penalty));
  }
  if ((temperature ?? 1) !== 1) apply("temperature", scores.map((score) => score / temperature));
  if (top_k) apply("top_k", keepTopK(scores, top_k));
  if ((top_p ?? 1) < 1) apply("top_p", keepTopP(scores, top_p));
  if (min_p != null) apply("min_p", keepMinP(scores, min_p));
  return scores;
}

// The likeliest token; the first of several.
export function argmax(scores) {
  return scores.reduce((best, score, id) => (score > scores[best] ? id : best), 0);
}

// Draw an id with these probabilities; `random()` is in [0, 1).
export function draw(probabilities, random) {
  const threshold = random() * probabilities.reduce((sum, p) => sum + p, 0);
  let sum = 0;
  const id = probabilities.findIndex((p) => (sum += p) > threshold);
  return id >= 0 ? id : argmax(probabilities);
}

// Numbers in [0, 1) that depend on the seed alone: mulberry32 by Tommy Ettinger, public domain.
export function makeRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
