"""PreTrainedModel, what all models share: their weights, opening and saving, and a call."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import numpy as np

from tinymistral.backend import Array, Backend
from tinymistral.cache import RollingCache
from tinymistral.checkpoint import check_tensors, find_checkpoint, load_checkpoint, write_tensors
from tinymistral.checkpoint.tensors import Shapes
from tinymistral.config import MistralConfig
from tinymistral.discovery import get_backend
from tinymistral.files import mapped_files
from tinymistral.inputs import Inputs, check_inputs
from tinymistral.model import Weights, forward
from tinymistral.outputs import Output
from tinymistral.renamed import Declared, how, refuse_unknown
from tinymistral.sampling import read_generation_config, write_generation_config
from tinymistral.settings import caller
from tinymistral.tap import Tap, Tapped

# A model of at most this many bytes in float32 has its weights widened when it is opened.
WIDENED_AT_MOST = 64_000_000

# Bytes of a number, by dtype.
BYTES: dict[str | None, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

Model = TypeVar("Model", bound="PreTrainedModel[Any]")
AnyOutput = TypeVar("AnyOutput", bound=Output)


class PreTrainedModel(Declared, Generic[AnyOutput]):
    """A configuration, a backend, and the weights as a tree of the checkpoint's names.

    Attributes: `config`; `backend`; `generation_config`, a dict of defaults for `generate`;
    `tensors`, the weights by name as NumPy arrays in the checkpoint's dtype (views of the mapped
    file); `weights`, the same on the backend, `weights.layers[0].self_attn.q_proj.weight`.
    """

    config: MistralConfig
    backend: Backend
    generation_config: dict[str, Any]
    tensors: Mapping[str, np.ndarray]
    weights: Any

    def __init__(
        self,
        config: MistralConfig,
        *,
        seed: int = 0,
        backend: str | Backend | None = None,
        dtype: str | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
    ):
        """Make a model with the given tensors, or with random float32 weights.

        Random weights are normal with standard deviation `initializer_range`, 1 in norms, and 0
        in biases. Raises ValueError for tensors that are not those of `parameter_shapes`.
        """
        self.config = config
        self.backend = get_backend(backend, dtype)
        check_head_width(self.backend, config.head_dim)
        self.backend.prepare(config)
        self.generation_config = {}
        if tensors is None:
            refuse_if_too_large(4 * self.num_parameters(), "random weights of this configuration")
            self.tensors = random_tensors(self.parameter_shapes(config), config, seed)
        else:
            shapes = self.parameter_shapes(config)
            check_tensors(tensors, shapes, ignorable=lambda name: True)
            self.tensors = {name: tensors[name] for name in shapes}
        # A small model's matrices are widened here, not again for every token: decoding is 1.5
        # times as fast. A large one's stay as they are mapped.
        large = 4 * self.num_parameters() > WIDENED_AT_MOST
        wide = self.backend.dtype in ("float32", "float64")
        as_stored = large and wide and self.backend.narrow_weights
        dtypes = {  # None: as it is stored
            name: None
            if as_stored and array.ndim > 1 and array.dtype != np.float64
            else self.backend.dtype
            for name, array in self.tensors.items()
        }
        self.backend.check_memory(
            sum(x.size * BYTES.get(dtypes[name], x.itemsize) for name, x in self.tensors.items())
        )
        by_file = {file: x for x in self.tensors.values() for file in mapped_files([x])}
        self._one_of_each_file = list(by_file.values())
        placed = {}
        for name, array in self.tensors.items():
            self._check_files()
            placed[name] = self.backend.asarray(array, dtypes[name])
        self.weights = tree(placed)
        self._warned_of_far_positions = False

    @classmethod
    def parameter_shapes(cls, config: MistralConfig) -> Shapes:
        """Return the name and shape of every tensor of a checkpoint of this class."""
        raise TypeError(f"{cls.__name__} is no model; use MistralModel or one of its heads")

    @abstractmethod
    def head(self, pieces: Iterator[Array], inputs: Inputs, backend: Backend) -> AnyOutput:
        """Compute the output from normed hidden states, in pieces (B, at most C, D).

        A subclass adds parameters, such as labels, which are arguments of a call too.
        """

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: RollingCache | None = None,
        inputs_embeds: Any = None,
        *,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        tap: Tap | None = None,
        **head_arguments: Any,
    ) -> AnyOutput:
        """Run token ids (B, T), or embeddings (B, T, D), through all layers and the head.

        `attention_mask` (B, T), or for all tokens so far, has 0 for padding; `position_ids`
        (B, T) are used as they are. `past_key_values`, which an earlier call returned, is
        continued, and written to; going back to a position drops the tokens from there on (the
        mask then is that of the new tokens alone). After an error or an interrupt it holds the
        pieces before the last one that was begun. `tap(name, array)` is called with every stage
        of `tap.STAGES`; the input then goes through in one piece. `head` explains further
        arguments, such as `labels`. Raises ValueError for inputs that do not fit.
        """
        if head_arguments:
            known = arguments_of(PreTrainedModel.__call__, self.head)
            refuse_unknown(type(self).__name__, head_arguments, known)
        if output_attentions and not self.backend.has_attention_weights:
            raise ValueError(
                f"output_attentions: backend {self.backend.name!r} does not give attention "
                "weights; leave it out, or use backend 'numpy'"
            )
        inputs = check_inputs(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            in_one_piece=tap is not None or output_attentions,
        )
        cache, inputs.cache = inputs.cache, inputs.cache.begin()
        backend: Any = self.backend
        if tap is not None or output_hidden_states or output_attentions:
            arrays, wanted = flat(self.weights), (tap, output_hidden_states, output_attentions)
            bias = next((x for name, x in arrays.items() if name.endswith(".bias")), None)
            backend = Tapped(self.backend, inputs.cache, bias, *wanted)
        output = self.head(self.run(inputs, backend), inputs, backend, **head_arguments)
        if self.config.use_cache if use_cache is None else use_cache:
            output.past_key_values = cache
        if isinstance(backend, Tapped):
            output.hidden_states, output.attentions = backend.hidden_states(), backend.attentions()
        inputs.cache.commit()
        return output

    def run(self, inputs: Inputs, backend: Backend | None = None) -> Iterator[Array]:
        """Run inputs through the layers, piece by piece -> (B, at most C, D), normed.

        The caller commits `inputs.cache`, made by `begin`, once it has used the last piece.
        """
        backend = self.backend if backend is None else backend
        cache, (_, T) = inputs.cache, inputs.positions.shape
        self._check_files()
        self.warn_of_far_positions(int(inputs.positions.max()))
        cache.reserve(T)
        for start in range(0, T, cache.chunk):
            part = slice(start, start + cache.chunk)
            rest = (self.base, inputs.positions[:, part], cache, self.config)
            if inputs.embeds is not None:
                yield forward(inputs.embeds[:, part], *rest, backend)
            else:
                yield backend.run_piece(forward, inputs.ids[:, part], *rest)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: str | Path,
        *,
        backend: str | Backend | None = None,
        dtype: str | Any = None,
        revision: str = "main",
        **unknown: Any,
    ) -> Model:
        """Open a checkpoint: a folder, or a hub name in the local Hugging Face cache.

        The folder is in Hugging Face's format or, without a config.json, raw as Mistral publishes
        it. The weights of a large model are mapped, not read. `backend` and `dtype` as in
        `get_backend`: `dtype` is what activations are rounded to, float32 by default whatever the
        checkpoint's dtype, which is what "auto" takes.
        Raises ValueError, in one line, for anything but a complete Mistral checkpoint.
        """
        known = arguments_of(PreTrainedModel.from_pretrained)
        refuse_unknown(f"{cls.__name__}.from_pretrained", unknown, known)
        folder = find_checkpoint(name_or_path, revision)
        if isinstance(dtype, str) and dtype == "auto":
            dtype = MistralConfig.from_pretrained(folder).dtype
        chosen = get_backend(backend, dtype)
        config, tensors = load_checkpoint(folder, cls.parameter_shapes, cls.__name__)
        model = cls(config, backend=chosen, tensors=tensors)
        model.generation_config = read_generation_config(folder)
        return model

    if not TYPE_CHECKING:  # which has to find wrong names itself

        def __getattr__(self, name: str) -> NoReturn:
            """Say how a name of transformers is written here."""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{how(name)}")

    def __repr__(self) -> str:
        config, backend = self.config, self.backend
        sizes = ("num_hidden_layers", "hidden_size", "sliding_window", "vocab_size")
        parts = [f"{name}={getattr(config, name)}" for name in sizes]
        return (
            f"{type(self).__name__}({self.num_parameters():,} parameters, {', '.join(parts)}, "
            f"backend={backend.name!r}, dtype={backend.dtype!r})"
        )

    def save_pretrained(self, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write config.json, generation_config.json and model.safetensors (or shards of it).

        The weights keep their dtype. A shard's size is in bytes, or a text such as "500MB". At
        every moment the folder opens as an earlier save, as this one, or not at all, see
        `write_tensors`.
        """

        def beside(new: Path) -> None:
            self.config.save_pretrained(new, type(self).__name__)
            write_generation_config(new, self.config, self.generation_config)

        write_tensors(Path(folder), self.tensors, max_shard_size, beside)

    def num_parameters(self) -> int:
        """Count the weights; tied ones once."""
        one, two = (  # of 1 and 2 layers; a configuration may claim a billion, too many to list
            sum(math.prod(shape) for shape in self.parameter_shapes(small).values())
            for small in (dataclasses.replace(self.config, num_hidden_layers=n) for n in (1, 2))
        )
        return one + (self.config.num_hidden_layers - 1) * (two - one)

    @property
    def base(self) -> Weights:
        """The weights of the layers, without those of a head."""
        base: Weights = self.weights.model
        return base

    def new_cache(self, rows: int, chunk: int | None = None) -> RollingCache:
        """Return an empty cache for a batch of `rows`, to give as `past_key_values`.

        `chunk` is the largest number of tokens that go through at once, by default the backend's.
        """
        return RollingCache(self.config, self.backend, rows, chunk)

    def _check_files(self) -> None:
        """Raise a CheckpointError if a file that weights are mapped from was cut meanwhile."""
        for file in mapped_files(self._one_of_each_file):
            file.check()

    def warn_of_far_positions(self, last: int) -> None:
        """Warn, once, if the last position of a run is past max_position_embeddings."""
        limit = self.config.max_position_embeddings
        if not self._warned_of_far_positions and last >= limit:
            self._warned_of_far_positions = True
            warnings.warn(
                f"position {last} is past max_position_embeddings, {limit}: the model "
                "was not made for texts this long, and its output may get worse",
                stacklevel=caller(),
            )


def arguments_of(*functions: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a user may give to these functions."""
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
    passed_on = ("self", "pieces", "inputs", "backend")  # required ones: no user gives them
    return [
        p.name
        for p in parameters
        if p.kind != p.VAR_KEYWORD and (p.name not in passed_on or p.default is not p.empty)
    ]


def check_head_width(backend: Backend, head_dim: int) -> None:
    """Raise a ValueError if the backend does not compute with heads of this width."""
    if backend.head_dims is not None and head_dim not in backend.head_dims:
        widths = [str(width) for width in sorted(backend.head_dims)]
        if len(widths) > 8:  # every even one, say
            widths = [*widths[:2], "...", widths[-1]]
        raise ValueError(
            f"head_dim {head_dim} is not one that backend {backend.name!r} supports; expected "
            f"one of {', '.join(widths)}, or another backend"
        )


def refuse_if_too_large(size: int, what: str) -> None:
    """Raise a ValueError if this machine has less memory than `what` needs, `size` bytes."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ValueError(
            f"{what} would take {size / 1e9:.1f} GB, this machine "
            f"has {memory / 1e9:.1f} GB; make it smaller (num_hidden_layers, hidden_size)"
        )


def random_tensors(shapes: Shapes, config: MistralConfig, seed: int) -> dict[str, np.ndarray]:
    """Draw float32 weights: normal with `initializer_range`, 1 in norms, 0 in biases."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(".bias"):
            tensors[name] = np.zeros(shape, dtype=np.float32)
        elif len(shape) == 1:
            tensors[name] = np.ones(shape, dtype=np.float32)
        else:
            tensors[name] = random.standard_normal(shape, dtype=np.float32)
            tensors[name] *= np.float32(config.initializer_range)
    return tensors


def tree(tensors: Mapping[str, Any]) -> Any:
    """Nest dotted names: {"layers.0.mlp.up_proj.weight": w} -> .layers[0].mlp.up_proj.weight."""
    root: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return _nest(root)


def flat(weights: Any, prefix: str = "") -> dict[str, Any]:
    """Undo `tree`: .layers[0].mlp.up_proj.weight = w -> {"layers.0.mlp.up_proj.weight": w}."""
    if isinstance(weights, list):
        children = {str(n): child for n, child in enumerate(weights)}
    elif isinstance(weights, SimpleNamespace):
        children = vars(weights)
    else:
        return {prefix.rstrip("."): weights}
    parts = (flat(child, f"{prefix}{name}.") for name, child in children.items())
    return {name: array for part in parts for name, array in part.items()}


def _nest(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {name: _nest(child) for name, child in node.items()}
    if all(name.isdigit() for name in children):
        return [children[str(n)] for n in range(len(children))]
    return SimpleNamespace(**children)
