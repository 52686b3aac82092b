"""The wire format of protocol buffers, which a SentencePiece model is in: to fields, and back.

A message is a list of [number, wire type, value]; the value of wire type 0 (a varint) is an
integer, and otherwise bytes. Format: https://protobuf.dev/programming-guides/encoding. The fields
of a model: sentencepiece_model.proto in https://github.com/google/sentencepiece.
"""

from typing import Any

PIECE, TRAINER, NORMALIZER = 1, 2, 3  # fields of a model; each is a message
ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 3, 4  # of NORMALIZER

Message = list[list[Any]]


def parse(content: bytes) -> Message:
    message, place = [], 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte, place = content[place], place + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(content):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            value: Any = varint()
        else:
            length = {1: 8, 5: 4}[wire] if wire != 2 else varint()
            value, place = content[place : place + length], place + length
        message.append([number, wire, value])
    return message


def build(message: Message) -> bytes:
    """Return the bytes; a value of wire type 2 may be a message itself."""
    content = b""
    for number, wire, value in message:
        content += _varint(8 * number + wire)
        if wire == 0:
            content += _varint(value)
            continue
        value = build(value) if isinstance(value, list) else value
        content += (_varint(len(value)) if wire == 2 else b"") + value
    return content


def _varint(value: int) -> bytes:
    value %= 2**64
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def with_field(model: bytes, part: int, number: int, value: int) -> bytes:
    """Return a model in which an integer of its first message `part` has another value."""
    message = parse(model)
    field = next(field for field in message if field[0] == part)
    field[2] = [f for f in parse(field[2]) if f[0] != number] + [[number, 0, value]]
    return build(message)
