"""Opening the checkpoint that a command was given."""

from __future__ import annotations

import argparse

from tinymistral.chat import is_instruct
from tinymistral.checkpoint import find_checkpoint
from tinymistral.commands.console import say
from tinymistral.model import MistralForCausalLM
from tinymistral.tokenizer import MistralTokenizer


def open_checkpoint(options: argparse.Namespace) -> tuple[MistralForCausalLM, MistralTokenizer]:
    """Open the model and the tokenizer, which have to have the same vocabulary."""
    tokenizer = MistralTokenizer.from_pretrained(options.model)
    model = MistralForCausalLM.from_pretrained(
        options.model, backend=options.backend, dtype=options.dtype
    )
    tokenizer.check_vocabulary(model.config.vocab_size)
    return model, tokenizer


def warn_of_a_base_model(options: argparse.Namespace) -> None:
    """Say that a model which was not made for conversations goes on with the text instead."""
    if not is_instruct(find_checkpoint(options.model)):
        say(
            "tinymistral: warning: this seems to be a base model, which goes on with a text "
            "rather than answer; take an Instruct model to talk to"
        )
