// Text to ids and back with the bytes of a SentencePiece model: BPE with byte fallback.
//
// A text is split into its characters. Then the pair of neighbours that makes the piece of the
// highest score becomes one, the leftmost of several, until no pair makes a piece. A character that
// is no piece is written as its UTF-8 bytes, each of which is a piece: <0x00> to <0xFF>.

const SPACE = "\u2581"; // a space, inside a piece
const [UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE] = [2, 3, 4, 5, 6]; // types; 1 is a normal one
const BPE = 2;

// The fields of a protobuf message, as [number, value]; of sub-messages and texts, the bytes.
function* fields(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const integer = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = integer();
    const [number, kind] = [tag >> 3, tag & 7];
    if (kind === 0) yield [number, integer()];
    if (kind === 1) yield [number, view.getFloat64((at += 8) - 8, true)];
    if (kind === 2) {
      const size = integer();
      yield [number, bytes.subarray(at, (at += size))];
    }
    if (kind === 5) yield [number, view.getFloat32((at += 4) - 4, true)];
  }
}

const text = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);

export class Tokenizer {
  // Field numbers: https://github.com/google/sentencepiece, src/sentencepiece_model.proto
  constructor(modelBytes) {
    this.pieces = []; // { piece, score, type } by id
    let trainer = {};
    let normalizer = {};
    for (const [number, value] of fields(modelBytes)) {
      if (number === 1) {
        const { 1: piece, 2: score = 0, 3: type = 1 } = Object.fromEntries(fields(value));
        this.pieces.push({ piece: text(piece), score, type });
      }
      if (number === 2) trainer = Object.fromEntries(fields(value));
      if (number === 3) normalizer = Object.fromEntries(fields(value));
    }
    const { 2: characterMap = [], 3: dummyPrefix = 1, 4: removeSpaces = 1 } = normalizer;
    const kinds = new Set(this.pieces.map(({ type }) => type));
    if (trainer[3] !== BPE || kinds.has(USER_DEFINED) || kinds.has(UNUSED)) {
      throw new Error("the tokenizer is no plain SentencePiece BPE, as Mistral's is");
    }
    if (characterMap.length || removeSpaces) {
      throw new Error("the tokenizer changes texts (normalizer), which is not done here");
    }
    this.prefix = dummyPrefix ? SPACE : "";
    this.ids = new Map(); // of normal pieces
    this.byteIds = [];
    this.pieces.forEach(({ piece, type }, id) => {
      if (type === BYTE) this.byteIds[parseInt(piece.slice(3, 5), 16)] = id;
      else if (type !== CONTROL && type !== UNKNOWN) this.ids.set(piece, id);
      else if (type === UNKNOWN) this.unknown = id;
    });
  }

  isByte(id) {
    return this.pieces[id].type === BYTE;
  }

  // A piece as it is shown: U+2581 for a space, 0x0A for a byte.
  shown(id) {
    const { piece } = this.pieces[id];
    return this.isByte(id) ? piece.slice(1, -1) : piece;
  }

  isSpecial(id) {
    return this.pieces[id].type === CONTROL || this.pieces[id].type === UNKNOWN;
  }

  // The ids of a text, without <s>.
  encode(given) {
    if (!given) return [];
    const symbols = [...(this.prefix + given.replaceAll(" ", SPACE))];
    const scoreOf = (n) => {
      const id = n >= 0 && n + 1 < symbols.length ? this.ids.get(symbols[n] + symbols[n + 1]) : null;
      return id == null ? -Infinity : this.pieces[id].score;
    };
    const scores = symbols.map((_, n) => scoreOf(n)); // of symbol n with the next one
    for (;;) {
      let best = -1;
      for (let n = 0; n < scores.length; n++) {
        if (scores[n] > (best < 0 ? -Infinity : scores[best])) best = n;
      }
      if (best < 0) break;
      symbols.splice(best, 2, symbols[best] + symbols[best + 1]);
      scores.splice(best, 1);
      if (best > 0) scores[best - 1] = scoreOf(best - 1);
      scores[best] = scoreOf(best);
    }
    return symbols.flatMap((symbol) => this.ids.get(symbol) ?? this.bytesOf(symbol));
  }

  bytesOf(character) {
    const ids = [...new TextEncoder().encode(character)].map((byte) => this.byteIds[byte]);
    return ids.includes(undefined) ? [this.unknown] : ids;
  }

  // The text of ids. Special tokens are shown as their piece, or skipped. The space that
  // `encode` puts first is dropped; each byte that is no UTF-8 becomes U+FFFD.
  decode(ids, skipSpecial = false) {
    let out = "";
    let bytes = [];
    let atStart = true;
    const flush = () => {
      out += decodeUtf8(bytes);
      bytes = [];
    };
    for (const id of ids) {
      const { piece } = this.pieces[id];
      if (this.isSpecial(id) && skipSpecial) continue;
      if (this.isByte(id)) {
        bytes.push(parseInt(piece.slice(3, 5), 16));
        atStart = false;
        continue;
      }
      flush();
      if (this.isSpecial(id)) out += piece;
      else {
        const dropped = atStart && this.prefix && piece.startsWith(SPACE) ? piece.slice(1) : piece;
        out += dropped.replaceAll(SPACE, " ");
      }
      atStart = false;
    }
    flush();
    return out;
  }
}

// UTF-8 to text, with one U+FFFD for each byte that is not part of a character; TextDecoder
// alone would put one where a character breaks off after several of its bytes.
function decodeUtf8(bytes) {
  let out = "";
  for (let at = 0; at < bytes.length; ) {
    const length = [1, 2, 3, 4].find((n) => isCharacter(bytes.slice(at, at + n)));
    out += length ? text(Uint8Array.from(bytes.slice(at, at + length))) : "\ufffd";
    at += length ?? 1;
  }
  return out;
}

function isCharacter(bytes) {
  try {
    const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    return [...strict.decode(Uint8Array.from(bytes))].length === 1;
  } catch {
    return false;
  }
}
