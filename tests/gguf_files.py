"""GGUF files for tests: as llama.cpp's converter writes them, and byte by byte.

The first use the writer, the names and the quantization of the package `gguf`; the order of rows is
by conversion/llama.py of llama.cpp. The second share no code with anything.
"""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor

from tinymistral import DEMO, MistralConfig

CONFIG = MistralConfig(
    vocab_size=2048,  # of the demo's tokenizer
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1000,
    rms_norm_eps=1e-6,
    rope_theta=123456.0,
    sliding_window=17,
)
WIDE = replace(  # as wide as a block of the K-quantizations
    CONFIG, hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64
)


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path,
    config: MistralConfig = CONFIG,
    tensors: dict[str, np.ndarray] | None = None,
    kind: str = "F32",
    tokenizer: Path | None = DEMO / "tokenizer.model",
    shards: int = 0,
    **other: Any,
) -> dict[str, np.ndarray]:
    """Write a model as the converter does; return what `gguf` itself says of its tensors' numbers.

    tensors: under Hugging Face's names; None: some of the right shapes. shards: tensors in a file.
    other: further entries of the metadata, with `__` for a dot; None leaves one out.
    """
    file = gguf.GGUFWriter(path, "llama", split_max_tensors=shards)
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_rope_freq_base(config.rope_theta)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_key_length(config.head_dim)
    file.add_value_length(config.head_dim)
    file.add_vocab_size(config.vocab_size)
    file.add_rope_dimension_count(config.head_dim)
    if config.sliding_window:
        file.add_sliding_window(config.sliding_window)
    if tokenizer:
        add_sentencepiece(file, tokenizer)
    for key, value in other.items():
        key = key.replace("__", ".")
        for entries in file.kv_data:
            entries.pop(key, None)
        if value is not None:
            add = {bool: file.add_bool, int: file.add_uint32, float: file.add_float32}
            add |= {str: file.add_string, list: file.add_array}
            add[type(value)](key, value)
    numbers = {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in (random_tensors(config) if tensors is None else tensors).items():
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        count = heads.get(name[-len("q_proj.weight")]) if "_proj.weight" in name else None
        order = np.arange(len(tensor)) if count is None else paired(np.arange(len(tensor)), count)
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        content = quantized(tensor[order], stored)
        file.add_tensor(names.get_name(name, try_suffixes=(".weight",)), content, raw_dtype=stored)
        numbers[name] = np.empty_like(tensor, dtype=np.float32)
        numbers[name][order] = gguf.dequantize(content, stored)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return numbers


def quantized(tensor: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Quantize, or take any bytes where `gguf` cannot; below 64 none is part of inf or nan."""
    try:
        return gguf.quantize(tensor, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        return np.random.default_rng(0).integers(0, 64, shape, dtype=np.uint8)


def random_tensors(config: MistralConfig) -> dict[str, np.ndarray]:
    d, D, F = config.head_dim, config.hidden_size, config.intermediate_size
    q, k = config.num_attention_heads * d, config.num_key_value_heads * d
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, D)}
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}."
        shapes |= {f"{layer}{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{n}_proj.weight": (k, D) for n in "kv"}
        shapes |= {f"{layer}self_attn.q_proj.weight": (q, D)}
        shapes |= {f"{layer}self_attn.o_proj.weight": (D, q)}
        shapes |= {f"{layer}mlp.{n}_proj.weight": (F, D) for n in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (D, F)}
    shapes |= {"model.norm.weight": (D,), "lm_head.weight": (config.vocab_size, D)}
    random = np.random.default_rng(0)
    return {n: random.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}


def add_sentencepiece(
    file: gguf.GGUFWriter, path: Path, added: dict[str, int] | None = None
) -> None:
    """Add a vocabulary as _create_vocab_sentencepiece does; `added` with their types."""
    judge = SentencePieceProcessor(model_file=str(path))
    kinds = {
        gguf.TokenType.UNKNOWN: judge.IsUnknown,
        gguf.TokenType.CONTROL: judge.IsControl,
        gguf.TokenType.BYTE: judge.IsByte,
    }
    size = judge.vocab_size()
    types = [
        next((kind for kind, is_it in kinds.items() if is_it(i)), gguf.TokenType.NORMAL)
        for i in range(size)
    ]
    added = added or {}
    file.add_tokenizer_model("llama")
    file.add_tokenizer_pre("default")
    file.add_token_list([*map(judge.IdToPiece, range(size)), *added])
    file.add_token_scores([*map(judge.GetScore, range(size)), *[-1000.0] * len(added)])
    file.add_token_types([*types, *added.values()])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)


U32, TEXT, ARRAY = 4, 8, 9  # types of metadata


def build(tree: dict[str, Any]) -> bytes:
    """Return the bytes of a file: {"begin": ..., "metadata": [...], "tensors": [...], "data": ...}.

    An entry is [key, type, value], the value of an array [type, values]; a tensor is
    [name, sizes, type, offset]. `counts`, where it is there, are said to be the numbers of both.
    """
    metadata, tensors = tree["metadata"], tree["tensors"]
    content = tree["begin"] + _pack("QQ", *tree.get("counts", [len(tensors), len(metadata)]))
    content += b"".join(_text(key) + _typed(kind, value) for key, kind, value in metadata)
    for name, sizes, kind, offset in tensors:
        content += _text(name) + _pack(f"I{len(sizes)}Q", len(sizes), *sizes)
        content += _pack("IQ", kind, offset)
    return content + bytes(-len(content) % 32) + tree["data"]


def _pack(form: str, *values: Any) -> bytes:
    try:
        return struct.pack("<" + form, *values)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"no file can hold it: {error}") from None


def _typed(kind: int, value: Any) -> bytes:
    return _pack("I", kind) + _value(kind, value)


def _value(kind: int, value: Any) -> bytes:
    if kind == TEXT:
        return _text(value)
    if kind == ARRAY:
        inner, values = value
        return _pack("IQ", inner, len(values)) + b"".join(_value(inner, v) for v in values)
    if isinstance(value, bytes):
        return value
    return _pack(dict(zip(range(13), "BbHhIif?..Qqd", strict=True))[kind], value)


def _text(text: str | bytes) -> bytes:
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return _pack("Q", len(content)) + content


def tree_of(path: Path) -> dict[str, Any]:
    """Return the tree of a file, which `gguf` reads."""
    found = gguf.GGUFReader(path)
    metadata = []
    for key, field in found.fields.items():
        if key.startswith("GGUF."):
            continue
        kind, value = int(field.types[0]), field.contents()
        metadata.append([key, kind, [int(field.types[-1]), value] if kind == ARRAY else value])
    start = found.data_offset
    tensors = [
        [t.name, t.shape.tolist(), int(t.tensor_type), t.data_offset - start] for t in found.tensors
    ]
    content = path.read_bytes()
    return {"begin": content[:8], "metadata": metadata, "tensors": tensors, "data": content[start:]}
