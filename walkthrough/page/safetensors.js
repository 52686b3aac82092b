// safetensors: 8 bytes that say how long the JSON header is, the header, the numbers.

// Numbers of up to 32 bits become Float32Array, which holds each of them exactly.
const READERS = {
  F64: (buffer) => new Float64Array(buffer),
  F32: (buffer) => new Float32Array(buffer),
  F16: (buffer) => Float32Array.from(new Uint16Array(buffer), fromFloat16),
  // bfloat16 is a float32 without its last 16 bits.
  BF16: (buffer) =>
    new Float32Array(Uint32Array.from(new Uint16Array(buffer), (bits) => bits << 16).buffer),
  I64: (buffer) => Float64Array.from(new BigInt64Array(buffer), Number),
};

function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 0x1f, bits & 0x3ff];
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// The bytes of a file -> { name: { shape, data } }.
export function readSafetensors(bytes) {
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    const [start, stop] = offsets.map((offset) => 8 + size + offset);
    const copy = new Uint8Array(bytes.subarray(start, stop)); // which is aligned
    tensors[name] = { shape, data: READERS[dtype](copy.buffer) };
  }
  return tensors;
}
