"""A conversation with an Instruct model that computes each token once, however long it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinymistral.chat import user_turn
from tinymistral.files import read_json, write_json
from tinymistral.streaming import StreamDecoder

if TYPE_CHECKING:
    from tinymistral.heads import MistralForCausalLM
    from tinymistral.tokenizer import MistralTokenizer


class Conversation:
    """User and assistant in turn, in the official Instruct format.

    The rolling cache is kept from turn to turn, so that a turn costs only its own tokens. For
    that, an answer stays in the conversation as the ids that were drawn; the same text, put
    through the tokenizer again, may give others.

    The system prompt goes before the first message; v2 and v3 tokenizers would have it before the
    last one, which a cache cannot.

    Attributes: `messages`, what was said, as `apply_chat_template` takes it (but where a model
    ended an answer before it began, its text is empty); `ids`, all of it as the model sees it;
    `cache`; `seconds` and `new_tokens` of the last answer.
    """

    def __init__(
        self, model: MistralForCausalLM, tokenizer: MistralTokenizer, system: str | None = None
    ):
        """Begin a conversation, with a system prompt if there is one."""
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.ids: list[int] = []
        self.cache = model.new_cache(rows=1)
        self.seconds, self.new_tokens = 0.0, 0

    def ask(
        self,
        content: str,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Generator[str, None, None]:
        """Say something -> the answer's text as it comes.

        The options are those of `generate`. Whoever stops reading, by an exception too, stops the
        answer: it ends where it is, and the conversation can go on. Stopped before it has begun,
        nothing was said.
        """
        first = not self.ids
        new = user_turn(self.tokenizer, content, self.system if first else None, first=first)
        eos = self.model.config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        steps = self.model.generate_stream(
            [self.ids + new], past_key_values=self.cache, progress=progress, **options
        )
        self.messages.append({"role": "user", "content": content})
        self.ids += new
        decoder, answer = StreamDecoder(self.tokenizer), ""
        self.new_tokens, start = 0, time.perf_counter()
        try:
            for step in steps:
                token = int(step.tokens[0])
                self.ids.append(token)
                self.new_tokens += 1
                text = decoder.push(token)
                answer += text
                yield text
            text = decoder.flush()
            answer += text
            yield text
        finally:
            self.seconds = time.perf_counter() - start
            if self.new_tokens:
                if self.ids[-1] not in ends:
                    self.ids.append(self.tokenizer.eos_token_id or 0)
                self.messages.append({"role": "assistant", "content": answer})
            else:  # the cache may hold some of the message: all before it is computed once more
                self.messages.pop()
                del self.ids[len(self.ids) - len(new) :]
                self.cache = self.model.new_cache(rows=1)

    def save(self, file: Path) -> None:
        """Write the messages as JSON, whole or not at all."""
        write_json(file, {"messages": self.messages})


def is_instruct(folder: Path) -> bool:
    """Tell whether a checkpoint seems to be made for conversations: it has a chat template.

    Or it is called so, the folder or the repository whose snapshot it is: a raw one has no
    template.
    """
    names = (folder.name, folder.parent.parent.name)
    if (
        any("instruct" in name.lower() for name in names)
        or (folder / "chat_template.jinja").exists()
    ):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(read_json(settings).get("chat_template"))
