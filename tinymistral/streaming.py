"""Text as it is generated: ids to text one token at a time, and stop strings that end it.

`decode` of a whole sequence uses `StreamDecoder`, so the two cannot differ.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinymistral.tokenizer import MistralTokenizer

SPACE = "\u2581"  # SentencePiece writes a space inside a piece as this letter


def _one_replacement_a_byte(error: UnicodeError) -> tuple[str, int]:
    """Return U+FFFD for each byte that is not part of a character, as SentencePiece does.

    Python's own "replace" puts a single U+FFFD where a character ends after several of its bytes.
    """
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("tinymistral.one_replacement_a_byte", _one_replacement_a_byte)


class StreamDecoder:
    """Decodes one sequence, a token at a time; the texts, joined, are what `decode` returns.

    An incomplete character is held back until its other bytes come. To decode the continuation of a
    prompt, push the prompt's ids first and ignore their text: then a space at the start of the
    continuation is not lost.
    """

    def __init__(self, tokenizer: MistralTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("tinymistral.one_replacement_a_byte")
        self._opening: list[int] | None = []  # the last id, until there is text; then None

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, perhaps none."""
        tokenizer, processor = self._tokenizer, self._tokenizer.processor
        token_id = tokenizer.check_id(token_id)
        added, special = token_id in tokenizer.added.by_id, tokenizer.is_special(token_id)
        if not added and token_id >= tokenizer.vocab_size:  # padding of the embedding
            return ""
        if special and self._skip_special_tokens:
            return ""
        if added or special:
            self._opening = None
            return self.flush() + tokenizer.convert_ids_to_tokens(token_id)
        piece: str = processor.id_to_piece(token_id)
        if processor.is_byte(token_id):  # <0x0A>
            self._opening = None
            return self._utf8.decode(processor.bytes_of(token_id))
        broken_off = self.flush()
        if self._opening is None:
            return broken_off + piece.replace(SPACE, " ")
        # At the start SentencePiece drops one space, or (depending on the model) one of each token
        # until there is text, so here it decodes the start itself: the token before, which had no
        # text, says whether a space is dropped now. After a special token that is shown there is
        # no start any more: [1, 264] gives "<s> a", as with Hugging Face's tokenizers.
        text: str = processor.decode([*self._opening, token_id])
        self._opening = None if text else [token_id]
        return text

    def flush(self) -> str:
        """Return U+FFFD for each byte that is still held back, at the end of the sequence."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Passes text on up to the first stop string, and drops that and what follows.

    The first stop string that is complete ends the text, which is cut where that string begins; of
    several that end at the same character the longest counts. The result does not depend on the
    pieces in which the text comes. Only what may be the beginning of a stop string is held back.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        strings = [stop] if isinstance(stop, str) else stop
        if not isinstance(strings, (list, tuple)) or not all(
            isinstance(string, str) and string for string in strings
        ):
            raise ValueError(f"stop is {stop!r}, expected a text or a list of texts, none empty")
        self._stop = tuple(strings)
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """Return the text that can be shown now; none once a stop string has `matched`."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(text.index(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if found:
            end, minus_length = min(found)
            self.matched, self._held = text[end + minus_length : end], ""
            return text[: end + minus_length]
        keep = self._length_to_hold(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _length_to_hold(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
