"""safetensors files put together byte by byte, to the format's description.

https://github.com/huggingface/safetensors#format
"""

import json
import struct
from pathlib import Path


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_bytes(header, data=b"", length=None):
    """Eight bytes of header length, the header (a dict, or bytes as they are), the data."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def write_shards(folder: Path, shards, weight_map):
    """Write files of float32 zeros, {file: {tensor: length}}, and the index given."""
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        header, end = {}, 0
        for name, count in tensors.items():
            header[name] = entry("F32", [count], end, end + 4 * count)
            end += 4 * count
        (folder / file).write_bytes(file_bytes(header, bytes(end)))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
