"""The models that users know: the layers of `model.py`, and what is read off them.

`MistralModel` returns the hidden states themselves, `MistralForCausalLM` logits over the next
token; the others have labels: of a text, of each token, of a span that answers a question.
Everything a call takes but a head's own arguments is said at `PreTrainedModel.__call__`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.checkpoint.tensors import base_shapes, causal_lm_shapes, with_head
from tinymistral.config import MistralConfig
from tinymistral.inputs import Inputs, kept_columns
from tinymistral.losses import (
    causal_lm_loss,
    cross_entropy,
    multi_label_loss,
    next_token_labels,
    regression_loss,
    sequence_labels,
    span_columns,
    span_loss,
    token_labels,
)
from tinymistral.model import Parameter, Weights
from tinymistral.outputs import (
    CausalLMOutput,
    ClassifierOutput,
    ModelOutput,
    QuestionAnsweringOutput,
)
from tinymistral.pretrained import PreTrainedModel, Shapes

SEQUENCE_LOSSES: dict[str, Callable[[np.ndarray, np.ndarray], np.floating]] = {
    "regression": regression_loss,
    "single_label_classification": cross_entropy,
    "multi_label_classification": multi_label_loss,
}


class MistralModel(PreTrainedModel[ModelOutput]):
    """The layers without a head: ids to hidden states."""

    @property
    def base(self) -> Weights:
        """All of them."""
        weights: Weights = self.weights
        return weights

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the names and shapes of a base model's tensors."""
        return base_shapes(config)

    def head(self, pieces: Iterator[Array], inputs: Inputs, backend: Backend) -> ModelOutput:
        """Return the normed hidden states (B, T, D) as they are."""
        return ModelOutput(last_hidden_state=joined(backend, pieces))


class MistralForCausalLM(PreTrainedModel[CausalLMOutput]):
    """The language model: ids to logits over the next token."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and the head unless it is tied."""
        return causal_lm_shapes(config)

    def logits(self, hidden: Array, backend: Backend | None = None) -> Array:
        """Map normed hidden states (B, T, D) -> (B, T, V); tied: by the embedding itself."""
        tied = self.config.tie_word_embeddings
        head: Parameter = self.weights.model.embed_tokens if tied else self.weights.lm_head
        return (backend or self.backend).linear(hidden, head.weight)

    def head(
        self,
        pieces: Iterator[Array],
        inputs: Inputs,
        backend: Backend,
        labels: Any = None,
        logits_to_keep: int | Any = 0,
    ) -> CausalLMOutput:
        """Return logits (B, T, V).

        `logits_to_keep`: how many of the last columns to give logits for, 0 for all, or a list
        of columns. `labels` (B, T), usually the ids themselves, give a `loss`: the mean
        cross-entropy of each column's logits with the next column's label, where that is not
        -100 and neither column is padding.
        """
        T = inputs.positions.shape[1]
        columns = kept_columns(logits_to_keep, T)
        if labels is not None:
            labels = next_token_labels(labels, self.config.vocab_size, inputs.real)
            if len(columns) < T:
                raise ValueError(
                    f"logits_to_keep: leaves {T - len(columns)} of {T} columns out, and with "
                    "labels the loss is over all of them; leave out one of the two"
                )
        parts, start = [], 0
        for hidden in pieces:
            stop = start + hidden.shape[1]
            kept = columns[(start <= columns) & (columns < stop)] - start
            if len(kept):
                whole = len(kept) == hidden.shape[1]
                part = hidden if whole else backend.take(hidden, kept, axis=1)
                parts.append(self.logits(part, backend))
            start = stop
        logits = joined(backend, parts)
        loss = None if labels is None else causal_lm_loss(logits, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def generate(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Continue prompts; see `tinymistral.generation.generate`."""
        from tinymistral.generation import generate

        return generate(self, input_ids, attention_mask, **options)

    def generate_stream(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Continue prompts, a token at a time; see `tinymistral.generation.generate_stream`."""
        from tinymistral.generation import generate_stream

        return generate_stream(self, input_ids, attention_mask, **options)


def joined(backend: Backend, pieces: Iterable[Array]) -> np.ndarray:
    """Bring pieces (B, t, n) to the host as one array (B, T, n)."""
    return np.concatenate([backend.to_numpy(piece) for piece in pieces], axis=1)


def scores(pieces: Iterator[Array], head: Any, backend: Backend) -> np.ndarray:
    """Apply a linear head, with a bias or without, to every token -> (B, T, labels)."""
    bias = getattr(head, "bias", None)
    logits = (backend.linear(hidden, head.weight) for hidden in pieces)
    return joined(backend, (x if bias is None else x + bias for x in logits))


def pooled_columns(config: MistralConfig, inputs: Inputs) -> np.ndarray:
    """Return the column (B,) whose logits are a row's: its rightmost id that is not pad_token_id.

    It is the ids that say what is padding, as in transformers, not the mask. Without ids to see
    (embeddings), or without a pad_token_id, it is the last column. Raises ValueError where the
    mask calls the column padding, and for a batch without a pad_token_id.
    """
    B, T = inputs.positions.shape
    pad = config.pad_token_id
    if pad is None and B > 1:
        raise ValueError(
            "Cannot handle batch sizes > 1 if no padding token is defined. Give one text at a "
            "time, or say which id pads: "
            "model.config = dataclasses.replace(model.config, pad_token_id=...)"
        )
    if pad is None or inputs.embeds is not None:
        columns = np.full(B, T - 1, dtype=np.int64)
    else:
        columns = ((inputs.ids != pad) * np.arange(T, dtype=np.int64)).argmax(axis=1)
    for row, column in enumerate(columns):
        if inputs.positions[row, column] < 0:
            raise ValueError(
                f"attention_mask: calls column {column} of row {row} padding, and the logits are "
                "taken there; set pad_token_id to the id that pads, or pad on the left"
            )
    return columns


class MistralForSequenceClassification(PreTrainedModel[ClassifierOutput]):
    """A text to logits over its labels, or to a number, read off its last token."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and `score`, which has no bias."""
        return with_head(config, {"score.weight": (config.num_labels, config.hidden_size)})

    def head(
        self,
        pieces: Iterator[Array],
        inputs: Inputs,
        backend: Backend,
        labels: Any = None,
    ) -> ClassifierOutput:
        """Return logits (B, num_labels).

        They are those of the rightmost token that is not `config.pad_token_id`, see
        `pooled_columns`; `config.id2label[logits[0].argmax()]` is the first text's label. `labels`
        give a `loss` by `config.problem_type`: numbers (B,), or (B, num_labels), for "regression";
        integers (B,), -100 for none, for "single_label_classification"; floats
        (B, num_labels), 0.0 to 1.0, for "multi_label_classification"; where it is None, see
        `losses.sequence_labels`.
        """
        columns = pooled_columns(self.config, inputs)
        rows = np.arange(len(columns), dtype=np.int64)
        problem = ""
        if labels is not None:
            problem, labels = sequence_labels(labels, self.config, len(rows))
        logits = scores(pieces, self.weights.score, backend)[rows, columns]
        return ClassifierOutput(
            loss=None if labels is None else SEQUENCE_LOSSES[problem](logits, labels),
            logits=logits,
        )


class MistralForTokenClassification(PreTrainedModel[ClassifierOutput]):
    """Each token to logits over its labels."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and `score` with its bias."""
        n, D = config.num_labels, config.hidden_size
        return with_head(config, {"score.weight": (n, D), "score.bias": (n,)})

    def head(
        self,
        pieces: Iterator[Array],
        inputs: Inputs,
        backend: Backend,
        labels: Any = None,
    ) -> ClassifierOutput:
        """Return logits (B, T, num_labels).

        `labels` (B, T) give a `loss`: the mean cross-entropy of the tokens whose label is not
        -100, padding left out.
        """
        if labels is not None:
            labels = token_labels(labels, self.config.num_labels, inputs.real)
        logits = scores(pieces, self.weights.score, backend)
        return ClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
        )


class MistralForQuestionAnswering(PreTrainedModel[QuestionAnsweringOutput]):
    """Each token to two logits: that the answer starts here, that it ends here."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and `qa_outputs` with its bias."""
        return with_head(
            config, {"qa_outputs.weight": (2, config.hidden_size), "qa_outputs.bias": (2,)}
        )

    def head(
        self,
        pieces: Iterator[Array],
        inputs: Inputs,
        backend: Backend,
        start_positions: Any = None,
        end_positions: Any = None,
    ) -> QuestionAnsweringOutput:
        """Return start and end logits (B, T).

        `start_positions` and `end_positions` (B,), the columns of the right answers, give a
        `loss`: see `losses.span_loss`. In it no answer starts or ends in padding.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("start_positions and end_positions: expected both or none, got one")
        if start_positions is not None:
            start_positions = span_columns("start_positions", start_positions, inputs.real)
            end_positions = span_columns("end_positions", end_positions, inputs.real)
        logits = scores(pieces, self.weights.qa_outputs, backend)
        loss = None
        if start_positions is not None:
            possible = np.where(inputs.real[:, :, None], logits, logits.dtype.type(-np.inf))
            starts, ends = possible[..., 0], possible[..., 1]
            loss = span_loss(starts, ends, start_positions, end_positions)
        return QuestionAnsweringOutput(
            loss=loss,
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
        )
