"""The heads with labels: of a text, of each token, of a span that answers a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinymistral.cache import RollingCache
from tinymistral.checkpoint.tensors import with_head
from tinymistral.config import MistralConfig
from tinymistral.inputs import Inputs
from tinymistral.labels import sequence_labels, span_columns, token_labels
from tinymistral.losses import cross_entropy, multi_label_loss, regression_loss, span_loss
from tinymistral.model import Call
from tinymistral.outputs import ClassifierOutput, QuestionAnsweringOutput
from tinymistral.pretrained import PreTrainedModel, Shapes, refuse_unknown
from tinymistral.stages import Tap

SEQUENCE_LOSSES: dict[str, Callable[[np.ndarray, np.ndarray], np.floating]] = {
    "regression": regression_loss,
    "single_label_classification": cross_entropy,
    "multi_label_classification": multi_label_loss,
}


def scores(call: Call, head: Any) -> np.ndarray:
    """Apply a linear head, with a bias or without, to every token -> (B, T, labels)."""
    backend, parts = call.model.backend, []
    for hidden in call.hidden():
        logits = backend.linear(hidden, head.weight)
        logits = logits + head.bias if hasattr(head, "bias") else logits
        call.see("logits", logits)
        parts.append(backend.to_numpy(logits))
    return np.concatenate(parts, axis=1)


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


class MistralForSequenceClassification(PreTrainedModel):
    """A text to logits over its labels, or to a number, read off its last token."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and `score`, which has no bias."""
        return with_head(config, {"score.weight": (config.num_labels, config.hidden_size)})

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        tap: Tap | None = None,
        **unknown: Any,
    ) -> ClassifierOutput:
        """Run token ids (B, T), or embeddings (B, T, D) -> logits (B, num_labels).

        They are those of the rightmost token that is not `config.pad_token_id`, see
        `pooled_columns`; `config.id2label[logits[0].argmax()]` is the first text's label. `labels`
        give a `loss` by `config.problem_type`: numbers (B,), or (B, num_labels), for "regression";
        integers (B,), -100 for none, for "single_label_classification"; floats
        (B, num_labels), 0.0 to 1.0, for "multi_label_classification"; where it is None, see
        `labels.sequence_labels`. Everything else as for `MistralModel`.
        """
        refuse_unknown(MistralForSequenceClassification.__call__, unknown)
        given = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        call = Call(self, given, (tap, output_hidden_states, output_attentions))
        columns = pooled_columns(self.config, call.inputs)
        rows = np.arange(len(columns), dtype=np.int64)
        problem = ""
        if labels is not None:
            problem, labels = sequence_labels(labels, self.config, len(rows))
        logits = scores(call, self.weights.score)[rows, columns]
        return ClassifierOutput(
            loss=None if labels is None else SEQUENCE_LOSSES[problem](logits, labels),
            logits=logits,
            **call.shared_output(use_cache),
        )


class MistralForTokenClassification(PreTrainedModel):
    """Each token to logits over its labels."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and `score` with its bias."""
        n, D = config.num_labels, config.hidden_size
        return with_head(config, {"score.weight": (n, D), "score.bias": (n,)})

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        tap: Tap | None = None,
        **unknown: Any,
    ) -> ClassifierOutput:
        """Run token ids (B, T), or embeddings (B, T, D) -> logits (B, T, num_labels).

        `labels` (B, T) give a `loss`: the mean cross-entropy of the tokens whose label is not
        -100, padding left out. Everything else as for `MistralModel`.
        """
        refuse_unknown(MistralForTokenClassification.__call__, unknown)
        given = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        call = Call(self, given, (tap, output_hidden_states, output_attentions))
        if labels is not None:
            labels = token_labels(labels, self.config.num_labels, call.real)
        logits = scores(call, self.weights.score)
        return ClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            **call.shared_output(use_cache),
        )


class MistralForQuestionAnswering(PreTrainedModel):
    """Each token to two logits: that the answer starts here, that it ends here."""

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the base model's tensors after `model.`, and `qa_outputs` with its bias."""
        return with_head(
            config, {"qa_outputs.weight": (2, config.hidden_size), "qa_outputs.bias": (2,)}
        )

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        tap: Tap | None = None,
        **unknown: Any,
    ) -> QuestionAnsweringOutput:
        """Run token ids (B, T), or embeddings (B, T, D) -> start and end logits (B, T).

        `start_positions` and `end_positions` (B,), the columns of the right answers, give a
        `loss`: see `losses.span_loss`. In it no answer starts or ends in padding. Everything
        else as for `MistralModel`.
        """
        refuse_unknown(MistralForQuestionAnswering.__call__, unknown)
        given = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        call = Call(self, given, (tap, output_hidden_states, output_attentions))
        if (start_positions is None) != (end_positions is None):
            raise ValueError("start_positions and end_positions: expected both or none, got one")
        if start_positions is not None:
            start_positions = span_columns("start_positions", start_positions, call.real)
            end_positions = span_columns("end_positions", end_positions, call.real)
        logits = scores(call, self.weights.qa_outputs)
        loss = None
        if start_positions is not None:
            possible = np.where(call.real[:, :, None], logits, logits.dtype.type(-np.inf))
            starts, ends = possible[..., 0], possible[..., 1]
            loss = span_loss(starts, ends, start_positions, end_positions)
        return QuestionAnsweringOutput(
            loss=loss,
            start_logits=logits[..., 0],
            end_logits=logits[..., 1],
            **call.shared_output(use_cache),
        )
