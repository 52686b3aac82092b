"""MistralConfig: what config.json says about a Mistral model, checked field by field."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinymistral.files import make_folder, read_json, write_json
from tinymistral.text import shorten

# What transformers takes an absent field to mean, where that is not Mistral-7B-v0.1
# (transformers 5, models/mistral/configuration_mistral.py).
ABSENT = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6}

# Fields of other models, and of other Mistrals, that change what is computed.
UNSUPPORTED = ("layer_types", "quantization_config", "attention_bias", "mlp_bias")


@dataclass(frozen=True)
class MistralConfig:
    """The shape and constants of a Mistral model, under the names that config.json gives them.

    `MistralConfig()` is Mistral-7B-v0.1 as published. The class defaults of transformers differ
    from it in `rms_norm_eps` (1e-6 there) and `max_position_embeddings` (131072); a field that
    is absent from a config.json means what transformers takes it to mean (`from_dict`).
    A wrong type or value is a ValueError that names the field.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8  # None: num_attention_heads
    head_dim: int = None  # type: ignore[assignment]  # None: hidden_size // num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02  # standard deviation of random weights
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_theta: float = None  # type: ignore[assignment]  # None: see rope_parameters, else 10000
    rope_parameters: dict[str, Any] | None = None  # transformers 5 keeps rope_theta in here
    sliding_window: int | None = 4096  # keys visible to a query, its own included; None: all
    attention_dropout: float = 0.0  # of training; nothing is dropped here
    dtype: str | None = None  # of the checkpoint's weights, as information
    # Of the heads with labels. None: as many as id2label names, else 2; LABEL_0, LABEL_1, ...
    num_labels: int = None  # type: ignore[assignment]
    id2label: dict[int, str] = None  # type: ignore[assignment]
    label2id: dict[str, int] = None  # type: ignore[assignment]
    problem_type: str | None = None  # of PROBLEM_TYPES; None: labels.sequence_labels

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _integer(name, getattr(self, name), 1)
        if self.num_key_value_heads is None:
            _set(self, "num_key_value_heads", self.num_attention_heads)
        _integer("num_key_value_heads", self.num_key_value_heads, 1)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: {self.num_key_value_heads} does not divide "
                f"num_attention_heads, {self.num_attention_heads}; give a divisor of it"
            )
        if self.head_dim is None:
            _set(self, "head_dim", self.hidden_size // self.num_attention_heads)
        _integer("head_dim", self.head_dim, 2)
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim: {self.head_dim} is odd; rotary embeddings turn pairs, so give it even"
            )
        if self.sliding_window is not None:
            if isinstance(self.sliding_window, list):
                raise ValueError(
                    "sliding_window: a list, one window a layer, is not supported; "
                    "expected one integer >= 1 or null"
                )
            _integer("sliding_window", self.sliding_window, 1)
        if self.hidden_act != "silu":
            raise ValueError(
                f"hidden_act: {_short(self.hidden_act)} is not supported; expected 'silu'"
            )
        for name in ("initializer_range", "rms_norm_eps", "attention_dropout"):
            _set(self, name, _number(name, getattr(self, name), at_least=0.0))
        if self.attention_dropout > 1:
            raise ValueError(f"attention_dropout: expected 0 to 1, got {self.attention_dropout}")
        for name in ("use_cache", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name}: expected true or false, got {_short(getattr(self, name))}"
                )
        self._check_token_ids()
        self._settle_rope()
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(
                f"dtype: {_short(self.dtype)} is not supported; expected one of {DTYPES}"
            )
        self._settle_labels()

    def _check_token_ids(self) -> None:
        _set(self, "eos_token_id", plain_ids(self.eos_token_id))
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            ids = getattr(self, name)
            if name != "eos_token_id" or not isinstance(ids, list):
                ids = [] if ids is None else [ids]
            for token in ids:
                _integer(name, token, 0)
                if token >= self.vocab_size:
                    raise ValueError(f"{name}: {token} is not below vocab_size, {self.vocab_size}")

    def _settle_rope(self) -> None:
        """Make `rope_theta` and `rope_parameters` say the same, whichever was given.

        Both come where a configuration is copied with another `rope_theta`: that one counts then.
        """
        given = self.rope_parameters
        if isinstance(given, _Derived) and self.rope_theta is not None:
            given = None
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"rope_parameters: expected an object or null, got {_short(given)}")
        given = dict(given or {})
        rope_type = given.pop("rope_type", given.pop("type", "default"))
        inner = given.pop("rope_theta", None)
        if rope_type != "default":
            raise ValueError(
                f"rope_parameters: rope_type {_short(rope_type)} is not supported; "
                "expected 'default'"
            )
        if given:
            raise ValueError(
                f"rope_parameters: {_short(sorted(given))} not supported; expected rope_theta"
            )
        if None not in (inner, self.rope_theta) and inner != self.rope_theta:
            raise ValueError(
                f"rope_theta: {_short(self.rope_theta)}, but rope_parameters says {_short(inner)}; "
                "give one"
            )
        theta = next((value for value in (self.rope_theta, inner) if value is not None), 10000.0)
        theta = _number("rope_theta", theta, at_least=1.0)
        _set(self, "rope_theta", theta)
        _set(self, "rope_parameters", _Derived(rope_type="default", rope_theta=theta))

    def _settle_labels(self) -> None:
        """Make `num_labels`, `id2label` and `label2id` say the same, whichever was given."""
        if self.num_labels is not None:
            _integer("num_labels", self.num_labels, 1, MOST_LABELS)
        names = None if self.id2label is None else _names_by_id(self.id2label)
        if names is None or (self.num_labels is not None and names == _no_names(len(names))):
            names = _no_names(self.num_labels or 2)
        if self.num_labels not in (None, len(names)):
            raise ValueError(
                f"num_labels: {self.num_labels}, but id2label names {len(names)}; give one"
            )
        ids = {name: i for i, name in names.items()}
        if self.label2id is not None and not isinstance(self.label2id, Mapping):
            raise ValueError(
                f"label2id: expected an object from names to ids, got {_short(self.label2id)}"
            )
        if self.label2id:
            no_names = {name: i for i, name in _no_names(len(self.label2id)).items()}
            for name, i in {} if self.label2id == no_names else self.label2id.items():
                if isinstance(i, bool) or not isinstance(i, int) or names.get(i) != name:
                    raise ValueError(
                        f"label2id: {_short(name)}: {_short(i)} is not what id2label says; "
                        "leave label2id out, it follows from id2label"
                    )
        _set(self, "num_labels", len(names))
        _set(self, "id2label", names)
        _set(self, "label2id", ids)
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type: {_short(self.problem_type)} is not supported; "
                f"expected null or one of {PROBLEM_TYPES}"
            )
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ValueError(
                "problem_type: 'single_label_classification' needs num_labels of 2 or more; for "
                "one number give 'regression', for yes or no num_labels 2"
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MistralConfig:
        """Read the fields of a config.json, of transformers 5 or any earlier one.

        Fields that do not bear on the computation are ignored; one that would change it and is
        not supported here (quantization, per-layer windows, scaled RoPE) is refused by name.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"expected the fields of a config.json, got {_short(fields)}")
        if fields.get("model_type", "mistral") != "mistral":
            raise ValueError(
                f"model_type: {_short(fields['model_type'])} is not supported; expected 'mistral'"
            )
        for name in UNSUPPORTED:
            if fields.get(name) not in (None, False):
                raise ValueError(f"{name}: {_short(fields[name])} is not supported; remove it")
        known = {field.name for field in dataclasses.fields(cls)}
        values = ABSENT | {name: value for name, value in fields.items() if name in known}
        if fields.get("rope_scaling") is not None and fields.get("rope_parameters") is None:
            values["rope_parameters"] = fields["rope_scaling"]
        inner = values.get("rope_parameters")
        if isinstance(inner, Mapping) and "rope_theta" in inner:
            values.pop("rope_theta", None)
        if values.get("pad_token_id") == -1:  # how old conversions of Llama say none
            values["pad_token_id"] = None
        if values.get("dtype") is None and fields.get("torch_dtype") is not None:
            values["dtype"] = fields["torch_dtype"]
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a config.json; labels only where they say something.

        `rope_theta` comes twice: transformers 5 reads it in `rope_parameters`, and 4 beside it,
        where it would take 10000 for one that is not there.
        """
        fields = dataclasses.asdict(self)
        del fields["num_labels"]
        if self.id2label == _no_names(2):
            del fields["id2label"], fields["label2id"]
        if self.problem_type is None:
            del fields["problem_type"]
        return fields | {"model_type": "mistral"}

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str = "main") -> MistralConfig:
        """Read config.json of a folder, or of a hub name in the local Hugging Face cache.

        Of a raw checkpoint, which has none, it is what params.json and the weights say.
        """
        from tinymistral.checkpoint import find_checkpoint, is_raw, read_raw_config

        folder = find_checkpoint(name_or_path, revision)
        if is_raw(folder):
            return read_raw_config(folder)
        path = folder / "config.json"
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            prefix = "" if str(error).startswith(str(path)) else f"{path}: "
            raise ValueError(f"{prefix}{error}") from None

    def save_pretrained(self, folder: str | Path, architecture: str = "MistralForCausalLM") -> None:
        """Write config.json into a folder, made if it is not there."""
        folder = Path(folder)
        make_folder(folder)
        write_json(folder / "config.json", self.to_dict() | {"architectures": [architecture]})


LARGEST = 2**31 - 1  # of any integer here: what a 32-bit index can count
MOST_LABELS = 2**16  # named one by one, so a number that a file claims must not fill the memory
DTYPES = ("float32", "float16", "bfloat16", "float64")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


class _Derived(dict[str, Any]):
    """The `rope_parameters` that follow from `rope_theta`, rather than being given beside it."""


def plain_ids(ids: Any) -> Any:
    """Return ids in a tuple or an array as a list of Python's integers, others as they are."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    return list(ids) if isinstance(ids, tuple) else ids


def _set(config: MistralConfig, name: str, value: Any) -> None:
    object.__setattr__(config, name, value)  # the one way to derive a field of a frozen dataclass


def _integer(name: str, value: Any, at_least: int, at_most: int = LARGEST) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or not at_least <= value <= at_most:
        raise ValueError(
            f"{name}: expected an integer from {at_least} to {at_most}, got {_short(value)}"
        )


def _number(name: str, value: Any, at_least: float) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not at_least <= value <= sys.float_info.max:
        raise ValueError(f"{name}: expected a number >= {at_least:g}, got {_short(value)}")
    return float(value)


def _no_names(count: int) -> dict[int, str]:
    """Return the names of labels that have none."""
    return {i: f"LABEL_{i}" for i in range(count)}


def _names_by_id(id2label: Any) -> dict[int, str]:
    """Return names by ids 0, 1, ..., whose keys are strings in JSON."""
    fits = isinstance(id2label, Mapping) and 1 <= len(id2label) <= MOST_LABELS
    if fits:
        by_key = {str(key): name for key, name in id2label.items()}
        names = {i: by_key.get(str(i)) for i in range(len(id2label))}
        if all(isinstance(name, str) for name in names.values()):
            return names  # type: ignore[return-value]
    raise ValueError(
        f"id2label: expected a name for each of the ids 0, 1, 2, ..., got {_short(id2label)}"
    )


def _short(value: Any) -> str:
    return shorten(repr(value), 60)
