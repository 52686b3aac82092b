"""The models that users know: the layers of `model.py` with a head.

`MistralModel` returns the hidden states themselves, `MistralForCausalLM` logits over the next
token; the others have labels: of a text, of each token, of a span that answers a question.
`PreTrainedModel.__call__` explains the arguments of a call, `head` those of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.checkpoint.tensors import Shapes, base_shapes, causal_lm_shapes, with_head
from tinymistral.config import MistralConfig
from tinymistral.generation import GenerationStep, generate, generate_stream
from tinymistral.inputs import Inputs, columns_to_keep
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
from tinymistral.pretrained import PreTrainedModel

SEQUENCE_LOSSES: dict[str, Callable[[np.ndarray, np.ndarray], np.floating]] = {
    "regression": regression_loss,
    "single_label_classification": cross_entropy,
    "multi_label_classification": multi_label_loss,
}


class MistralModel(PreTrainedModel[ModelOutput]):
    """The layers without a head: ids to hidden states."""

    @property
    def base(self) -> Weights:
        """The weights of the layers, which are all."""
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
        """Return the base model's tensors under `model.`, and the head unless it is tied."""
        return causal_lm_shapes(config)

    def logits(self, hidden: Array, backend: Backend | None = None) -> Array:
        """Map normed hidden states (B, T, D) -> (B, T, V), by the embedding if it is tied."""
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

        `logits_to_keep`: the number of last columns to compute logits for, 0 for all, or a list
        of columns. `labels` (B, T), usually the ids themselves, give a `loss`: the mean
        cross-entropy of each column's logits with the next column's label, where that is not
        -100 and neither column is padding.
        """
        T = inputs.positions.shape[1]
        columns = columns_to_keep(logits_to_keep, T)
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
            wanted = columns[(start <= columns) & (columns < stop)] - start
            if len(wanted):
                if len(wanted) < hidden.shape[1]:
                    hidden = backend.take(hidden, wanted, axis=1)
                parts.append(self.logits(hidden, backend))
            start = stop
        logits = joined(backend, parts)
        loss = None if labels is None else causal_lm_loss(logits, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def generate(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Continue prompts; see `tinymistral.generation.generate`."""
        return generate(self, input_ids, attention_mask, **options)

    def generate_stream(
        self, input_ids: Any, attention_mask: Any = None, **options: Any
    ) -> Iterator[GenerationStep]:
        """Continue prompts, a token at a time; see `tinymistral.generation.generate_stream`."""
        return generate_stream(self, input_ids, attention_mask, **options)


# help() of a method shows the docstring of its function.
MistralForCausalLM.generate.__doc__ = generate.__doc__
MistralForCausalLM.generate_stream.__doc__ = generate_stream.__doc__


AutoModelForCausalLM = MistralForCausalLM  # its name in transformers' examples


def joined(backend: Backend, pieces: Iterable[Array]) -> np.ndarray:
    """Bring pieces (B, t, n) to the host as one array (B, T, n)."""
    return np.concatenate([backend.to_numpy(piece) for piece in pieces], axis=1)


def label_logits(pieces: Iterator[Array], head: Any, backend: Backend) -> np.ndarray:
    """Apply a linear head, with or without a bias, to every token -> (B, T, num_labels)."""
    bias = getattr(head, "bias", None)
    logits = (backend.linear(hidden, head.weight) for hidden in pieces)
    return joined(backend, (x if bias is None else x + bias for x in logits))


def pooled_columns(config: MistralConfig, inputs: Inputs) -> np.ndarray:
    """Return the column (B,) that classifies a row: its rightmost id that is not pad_token_id.

    As in transformers, the ids say what is padding, not the mask. Without ids (embeddings), or
    without a pad_token_id, it is the last column. Raises ValueError where the column is padding
    in the mask, and for a batch without a pad_token_id.
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
                f"attention_mask: column {column} of row {row} is padding, but its logits are "
                "needed; set pad_token_id to the id that pads, or pad on the left"
            )
    return columns


class MistralForSequenceClassification(PreTrainedModel[ClassifierOutput]):
    """Logits over labels for a text, or a number, from its last token."""

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
        logits = label_logits(pieces, self.weights.score, backend)[rows, columns]
        return ClassifierOutput(
            loss=None if labels is None else SEQUENCE_LOSSES[problem](logits, labels),
            logits=logits,
        )


class MistralForTokenClassification(PreTrainedModel[ClassifierOutput]):
    """Logits over labels for each token."""

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
        logits = label_logits(pieces, self.weights.score, backend)
        return ClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
        )


class MistralForQuestionAnswering(PreTrainedModel[QuestionAnsweringOutput]):
    """Two logits for each token: that an answer starts here, and that it ends here."""

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
        `loss`: see `losses.span_loss`. Padding has no part in it.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("start_positions and end_positions: expected both or none, got one")
        if start_positions is not None:
            start_positions = span_columns("start_positions", start_positions, inputs.real)
            end_positions = span_columns("end_positions", end_positions, inputs.real)
        logits = label_logits(pieces, self.weights.qa_outputs, backend)
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
