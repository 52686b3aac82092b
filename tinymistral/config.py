"""MistralConfig: what config.json or params.json says about a Mistral model, field by field."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tinymistral.files import CheckpointError, make_folder, read_json, write_json
from tinymistral.files.consolidated import CONFIG_FILE, PARAMS_FILE, is_raw, read_consolidated
from tinymistral.files.hub import find_checkpoint
from tinymistral.files.recognition import OTHER_PARAMS, QUANTIZED, refuse_fields, refuse_folder
from tinymistral.settings import NO_EFFECT, OF_GENERATE, caller, refuse, warn_of_unknown
from tinymistral.text import listed, quoted, short

if TYPE_CHECKING:
    import numpy as np

# What an absent field means in transformers, where that is not the value of Mistral-7B-v0.1
# (transformers 5, models/mistral/configuration_mistral.py).
ABSENT = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6}

PARAMS_NAMES = {  # field of a raw checkpoint's params.json -> field of config.json
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
}
_OPTIONAL_PARAMS = ("head_dim", "n_kv_heads", "rope_theta", "sliding_window")


@dataclass(frozen=True)
class MistralConfig:
    """The sizes and constants of a Mistral model, under their names in config.json.

    `MistralConfig()` is Mistral-7B-v0.1 as published. The class defaults of transformers differ
    from it in `rms_norm_eps` (1e-6 there) and `max_position_embeddings` (131072); a field that is
    absent from a config.json has transformers' default (`from_dict`). A wrong type or value is a
    ValueError that names the field.
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
    attention_dropout: float = 0.0  # for training; not used here
    dtype: str | None = None  # of the checkpoint's weights, for information
    # For the heads with labels. None: as many as id2label has, else 2; LABEL_0, LABEL_1, ...
    num_labels: int = None  # type: ignore[assignment]
    id2label: dict[int, str] = None  # type: ignore[assignment]
    label2id: dict[str, int] = None  # type: ignore[assignment]
    problem_type: str | None = None  # of PROBLEM_TYPES; None: losses.sequence_labels

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
                f"head_dim: {self.head_dim} is odd, but RoPE rotates pairs; give an even one"
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
                f"hidden_act: {short(self.hidden_act)} is not supported; expected 'silu'"
            )
        for name in ("initializer_range", "rms_norm_eps", "attention_dropout"):
            _set(self, name, _number(name, getattr(self, name), at_least=0.0))
        if self.attention_dropout > 1:
            raise ValueError(f"attention_dropout: expected 0 to 1, got {self.attention_dropout}")
        for name in ("use_cache", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name}: expected true or false, got {short(getattr(self, name))}"
                )
        self._check_token_ids()
        self._settle_rope()
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(
                f"dtype: {short(self.dtype)} is not supported; expected one of {DTYPES}"
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
                # An end outside the vocabulary never occurs, and does no harm.
                if token >= self.vocab_size and name != "eos_token_id":
                    raise ValueError(f"{name}: {token} is not below vocab_size, {self.vocab_size}")

    def _settle_rope(self) -> None:
        """Make `rope_theta` and `rope_parameters` agree, whichever was given.

        If a configuration is copied with another `rope_theta`, both are given; the new one counts.
        """
        fields = self.rope_parameters
        if isinstance(fields, _Derived) and self.rope_theta is not None:
            fields = None
        if fields is not None and not isinstance(fields, Mapping):
            raise ValueError(f"rope_parameters: expected an object or null, got {short(fields)}")
        fields = dict(fields or {})
        rope_type = fields.pop("rope_type", fields.pop("type", "default"))
        inner = fields.pop("rope_theta", None)
        if rope_type != "default":
            raise ValueError(
                f"rope_parameters: rope_type {short(rope_type)} is not supported; "
                "expected 'default'"
            )
        if fields:
            raise ValueError(
                f"rope_parameters: {short(sorted(fields))} not supported; expected rope_theta"
            )
        if None not in (inner, self.rope_theta) and inner != self.rope_theta:
            raise ValueError(
                f"rope_theta: {short(self.rope_theta)}, but rope_parameters says {short(inner)}; "
                "give one"
            )
        theta = next((value for value in (self.rope_theta, inner) if value is not None), 10000.0)
        theta = _number("rope_theta", theta, at_least=1.0)
        _set(self, "rope_theta", theta)
        _set(self, "rope_parameters", _Derived(rope_type="default", rope_theta=theta))

    def _settle_labels(self) -> None:
        """Make `num_labels`, `id2label` and `label2id` agree, whichever was given."""
        if self.num_labels is not None:
            _integer("num_labels", self.num_labels, 1, MOST_LABELS)
        names = None if self.id2label is None else _names_by_id(self.id2label)
        if names is None or (self.num_labels is not None and names == _default_names(len(names))):
            names = _default_names(self.num_labels or 2)
        if self.num_labels not in (None, len(names)):
            raise ValueError(
                f"num_labels: {self.num_labels}, but id2label names {len(names)}; give one"
            )
        ids = {name: i for i, name in names.items()}
        if self.label2id is not None and not isinstance(self.label2id, Mapping):
            raise ValueError(
                f"label2id: expected an object from names to ids, got {short(self.label2id)}"
            )
        if self.label2id:
            default_names = {name: i for i, name in _default_names(len(self.label2id)).items()}
            for name, i in {} if self.label2id == default_names else self.label2id.items():
                if isinstance(i, bool) or not isinstance(i, int) or names.get(i) != name:
                    raise ValueError(
                        f"label2id: {short(name)}: {short(i)} is not what id2label says; "
                        "leave label2id out, it follows from id2label"
                    )
        _set(self, "num_labels", len(names))
        _set(self, "id2label", names)
        _set(self, "label2id", ids)
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type: {short(self.problem_type)} is not supported; "
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

        Fields that do not change results are ignored, with a warning where they are not known; one
        that does and is not supported here (quantization, per-layer windows, scaled RoPE) is an
        error that names it.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"expected the fields of a config.json, got {short(fields)}")
        if fields.get("model_type", "mistral") != "mistral":
            raise ValueError(
                f"model_type: {short(fields['model_type'])} is not supported; expected 'mistral'"
            )
        refuse_fields(fields, QUANTIZED)
        refuse(CONFIG_FILE, fields)
        known = {field.name for field in dataclasses.fields(cls)}
        honoured = {*known, *OF_GENERATE, *QUANTIZED, "model_type", "rope_scaling", "torch_dtype"}
        warn_of_unknown(CONFIG_FILE, fields, honoured)
        values = ABSENT | {name: value for name, value in fields.items() if name in known}
        if fields.get("rope_scaling"):  # comes before rope_parameters in transformers too
            values["rope_parameters"] = fields["rope_scaling"]
        inner = values.get("rope_parameters")
        if isinstance(inner, Mapping) and "rope_theta" in inner:
            theta = values.pop("rope_theta", None)
            if theta not in (None, inner["rope_theta"]):
                warnings.warn(
                    f"rope_theta: {short(theta)} has no effect, as in transformers 5, since "
                    f"rope_parameters says {short(inner['rope_theta'])}; change it there",
                    stacklevel=caller(),
                )
        if values.get("pad_token_id") == -1:  # means none in old conversions of Llama
            values["pad_token_id"] = None
        if values.get("dtype") is None and fields.get("torch_dtype") is not None:
            values["dtype"] = fields["torch_dtype"]
        try:
            return cls(**values)
        except ValueError as error:
            if not fields.get("rope_scaling"):
                raise
            raise ValueError(str(error).replace("rope_parameters", "rope_scaling")) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a config.json; labels only if they differ from the default.

        `rope_theta` is there twice: transformers 5 reads it from `rope_parameters`, transformers 4
        reads the field itself, 10000 if absent.
        """
        fields = dataclasses.asdict(self)
        del fields["num_labels"]
        if self.id2label == _default_names(2):
            del fields["id2label"], fields["label2id"]
        if self.problem_type is None:
            del fields["problem_type"]
        return fields | {"model_type": "mistral"}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> MistralConfig:
        """Read the fields of a params.json, as raw checkpoints have it.

        If absent, head_dim is dim // n_heads, n_kv_heads is n_heads, and rope_theta is 10000 with
        a sliding_window (v0.1, whose params.json has none) and 1000000 without (from v0.2 on).
        max_position_embeddings is 32768, as in all published configs. A ValueError names a field
        that is wrong or not supported.
        Fields: https://github.com/mistralai/mistral-inference, src/mistral_inference/args.py
        """
        if params.get("model_type", "transformer") != "transformer":
            raise ValueError(
                f"model_type: {quoted(params['model_type'])} is not supported; "
                "expected 'transformer'"
            )
        refuse_fields(params, QUANTIZED | OTHER_PARAMS)
        known = (*PARAMS_NAMES, *NO_EFFECT[PARAMS_FILE])
        unknown = [
            n for n, value in params.items() if n not in known and value not in (None, False)
        ]
        if unknown:
            raise ValueError(
                f"{listed(map(quoted, unknown))} is not supported, since it may change what is "
                f"computed; expected only {', '.join(PARAMS_NAMES)}"
            )
        present = {name: value for name, value in params.items() if value is not None}
        missing = [name for name in PARAMS_NAMES if name not in (*present, *_OPTIONAL_PARAMS)]
        if missing:
            raise ValueError(f"{listed(map(quoted, missing))} is missing; download it again")
        window = present.get("sliding_window")
        if isinstance(window, str) and window.isdecimal() and len(window) < 20:
            window = int(window)
        absent = {"n_kv_heads": None, "rope_theta": 1e6 if window is None else 1e4}
        values = absent | present | {"sliding_window": window}
        try:
            return cls(**{PARAMS_NAMES[n]: values[n] for n in values if n in PARAMS_NAMES})
        except ValueError as error:
            message = str(error)
            for name, config_name in PARAMS_NAMES.items():
                message = message.replace(config_name, name)
            raise ValueError(message) from None

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str = "main") -> MistralConfig:
        """Read config.json of a folder, or of a hub name in the local Hugging Face cache.

        A raw checkpoint has none: then its params.json is read, and its tensors decide
        `tie_word_embeddings` and `dtype`. Raises ValueError.
        """
        folder = find_checkpoint(name_or_path, revision)
        if is_raw(folder):
            return cls.from_raw(folder)[0]
        if not (folder / CONFIG_FILE).exists():
            refuse_folder(folder)
        return cls._of_file(folder / CONFIG_FILE, cls.from_dict)

    @classmethod
    def from_raw(cls, folder: Path) -> tuple[MistralConfig, dict[str, np.ndarray]]:
        """Read a raw checkpoint, each file once: its configuration, and the tensors as stored."""
        config = cls._of_file(folder / PARAMS_FILE, cls.from_params)
        tensors = read_consolidated(folder)
        dtypes = {str(array.dtype) for array in tensors.values()}
        config = dataclasses.replace(
            config,
            tie_word_embeddings="output.weight" not in tensors,
            dtype=dtypes.pop() if len(dtypes) == 1 else None,
        )
        return config, tensors

    @staticmethod
    def _of_file(path: Path, parse: Callable[[dict[str, Any]], MistralConfig]) -> MistralConfig:
        fields = read_json(path)
        try:
            return parse(fields)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def save_pretrained(self, folder: str | Path, architecture: str = "MistralForCausalLM") -> None:
        """Write config.json into a folder, which is made if it does not exist."""
        folder = Path(folder)
        make_folder(folder)
        write_json(folder / CONFIG_FILE, self.to_dict() | {"architectures": [architecture]})


def _say_how_to_change(config: MistralConfig, name: str, value: Any) -> NoReturn:
    raise dataclasses.FrozenInstanceError(
        f"{name}: a configuration cannot be changed, but replaced: "
        f"model.config = dataclasses.replace(model.config, {name}={short(value)})"
    )


MistralConfig.__setattr__ = _say_how_to_change  # type: ignore[assignment, method-assign]

LARGEST = 2**31 - 1  # of any integer here: the range of a 32-bit index
MOST_LABELS = 2**16  # each has a name, so a number in a file must not fill the memory
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
    """`rope_parameters` that `_settle_rope` made, not the user."""


def plain_ids(ids: Any) -> Any:
    """Return ids in a tuple or an array as a list of Python integers, anything else as it is."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    return list(ids) if isinstance(ids, tuple) else ids


def _set(config: MistralConfig, name: str, value: Any) -> None:
    object.__setattr__(config, name, value)  # how a field of a frozen dataclass is set


def _integer(name: str, value: Any, at_least: int, at_most: int = LARGEST) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or not at_least <= value <= at_most:
        raise ValueError(
            f"{name}: expected an integer from {at_least} to {at_most}, got {short(value)}"
        )


def _number(name: str, value: Any, at_least: float) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not at_least <= value <= sys.float_info.max:
        raise ValueError(f"{name}: expected a number >= {at_least:g}, got {short(value)}")
    return float(value)


def _default_names(count: int) -> dict[int, str]:
    """Return the default names of labels."""
    return {i: f"LABEL_{i}" for i in range(count)}


def _names_by_id(id2label: Any) -> dict[int, str]:
    """Return the names by ids 0, 1, ...; in JSON the ids are strings."""
    fits = isinstance(id2label, Mapping) and 1 <= len(id2label) <= MOST_LABELS
    if fits:
        by_key = {str(key): name for key, name in id2label.items()}
        names = {i: by_key.get(str(i)) for i in range(len(id2label))}
        if all(isinstance(name, str) for name in names.values()):
            return names  # type: ignore[return-value]
    raise ValueError(
        f"id2label: expected a name for each of the ids 0, 1, 2, ..., got {short(id2label)}"
    )
