"""Checks of a call's inputs: ids, masks and positions as NumPy arrays, or a clear error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymistral.backend import Array
from tinymistral.cache import RollingCache

if TYPE_CHECKING:
    from tinymistral.pretrained import PreTrainedModel

LAST_POSITION = 2**31 - 1  # a backend may hold positions in 32 bits


@dataclass
class Inputs:
    """A call's checked inputs: ids (B, T), or embeddings (B, T, D); positions (B, T); cache.

    Raises ValueError for a position past LAST_POSITION, whether it was given or counted.
    """

    ids: np.ndarray  # empty where there are embeddings
    embeds: Array | None
    positions: np.ndarray
    cache: RollingCache

    def __post_init__(self) -> None:
        last = self.positions.max(initial=-1)
        if last > LAST_POSITION:
            raise ValueError(
                f"position {last} is past the last one, 2**31 - 1; give lower position_ids, or "
                "begin with a new cache"
            )

    @property
    def real(self) -> np.ndarray:
        """True for a token, false for padding (B, T)."""
        return self.positions >= 0


def check_inputs(
    model: PreTrainedModel[Any],
    *,
    input_ids: Any = None,
    attention_mask: Any = None,
    position_ids: Any = None,
    past_key_values: Any = None,
    inputs_embeds: Any = None,
    in_one_piece: bool = False,
) -> Inputs:
    """Return the checked inputs of a call, with the cache that was passed or a new one.

    Raises ValueError, in one line, for whatever does not fit.
    """
    config, backend = model.config, model.backend
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("expected either input_ids or inputs_embeds, got both or none")
    ids, embeds = np.empty((0, 0), dtype=np.int64), None
    if input_ids is not None:
        ids = check_ids(input_ids, config.vocab_size)
        B, T = ids.shape
    else:
        embeds = check_embeds(inputs_embeds, config.hidden_size)
        B, T = embeds.shape[:2]
        embeds = backend.asarray(embeds, backend.dtype)

    cache = past_key_values
    if cache is None:
        cache = model.new_cache(B, max(T, backend.chunk_for(B)) if in_one_piece else None)
    else:
        check_cache(cache, model)
        if len(cache.count) != B:
            raise ValueError(f"past_key_values: holds {len(cache.count)} rows, the input has {B}")
        if in_one_piece and cache.chunk < T:
            raise ValueError(
                f"tap and output_attentions take the input in one piece, and past_key_values takes "
                f"pieces of at most {cache.chunk} tokens, got {T}; give it fewer at a time"
            )
    return Inputs(ids, embeds, check_positions(attention_mask, position_ids, (B, T), cache), cache)


def check_cache(cache: Any, model: PreTrainedModel[Any]) -> None:
    """Raise a ValueError for a cache that is not of such a model, or of another backend."""
    backend = model.backend
    if not isinstance(cache, RollingCache) or cache.config != model.config:
        raise ValueError(
            "past_key_values: expected what an earlier call of a model of the same "
            f"configuration returned, got {type(cache).__qualname__}"
        )
    if (cache.backend.name, cache.backend.dtype) != (backend.name, backend.dtype):
        raise ValueError(
            f"past_key_values: made by backend {cache.backend.name} in {cache.backend.dtype}, the "
            f"model computes by {backend.name} in {backend.dtype}; begin with a new cache"
        )


def as_array(name: str, value: Any, kind: str = "integer") -> np.ndarray:
    """Return lists or an array as an array of any dtype and shape."""
    if not isinstance(value, np.ndarray | list | tuple):
        hint = "; pass tensor.numpy()" if hasattr(value, "numpy") else ""
        hint = "; write ** before it, as in model(**inputs)" if isinstance(value, dict) else hint
        raise ValueError(
            f"{name}: expected lists or a NumPy array of {kind}s, "
            f"got {type(value).__module__}.{type(value).__qualname__}{hint}"
        )
    try:
        return np.asarray(value)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name}: rows differ in length or hold something that is no {kind}; "
            f"pad them to one length (a tokenizer does with padding=True)"
        ) from None


def integers(name: str, value: Any, kinds: str = "iu") -> np.ndarray:
    """Return lists or an integer array as an int64 array (B, T), T and B at least 1."""
    array = as_array(name, value)
    if array.ndim != 2:
        shape = f"shape {array.shape}" if array.ndim else "a scalar"
        raise ValueError(f"{name}: expected rows of tokens (batch, tokens), got {shape}")
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one token, got shape {array.shape}")
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name}: expected integers, got {array.dtype}")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: expected integers below 2**63, got {array.max()}")
    return array.astype(np.int64)


def check_ids(input_ids: Any, vocab_size: int) -> np.ndarray:
    """Return ids (B, T) as int64, each of them in the vocabulary."""
    ids = integers("input_ids", input_ids)
    wrong = np.argwhere((ids < 0) | (ids >= vocab_size))
    if len(wrong):
        row, column = (int(n) for n in wrong[0])
        raise ValueError(
            f"input_ids: {ids[row, column]} at row {row}, column {column} is not in the "
            f"vocabulary; expected 0 to {vocab_size - 1}"
        )
    return ids


def check_embeds(inputs_embeds: Any, width: int) -> np.ndarray:
    """Return embeddings; ValueError unless they are a floating-point array (B, T, D)."""
    if not isinstance(inputs_embeds, np.ndarray):
        raise ValueError(
            f"inputs_embeds: expected a NumPy array, got {type(inputs_embeds).__qualname__}"
        )
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != width or not inputs_embeds.size:
        raise ValueError(
            f"inputs_embeds: expected shape (batch, tokens, {width}), got {inputs_embeds.shape}"
        )
    if not np.can_cast(inputs_embeds.dtype, np.float64) or inputs_embeds.dtype.kind in "iub":
        raise ValueError(f"inputs_embeds: expected floating point, got {inputs_embeds.dtype}")
    return inputs_embeds


def check_positions(
    attention_mask: Any, position_ids: Any, shape: tuple[int, int], cache: RollingCache
) -> np.ndarray:
    """Return each new token's absolute position (B, T), -1 where there is none.

    They are -1 where the mask is 0; elsewhere those of `position_ids`, or else they count on from
    the row's last position. The mask is for the new tokens, or for all so far. A zero between
    ones takes no position.
    """
    B, T = shape
    mask = _new_columns_of_mask(attention_mask, shape, cache)
    if position_ids is None:
        return np.where(mask, cache.last[:, None] + np.cumsum(mask, axis=1), -1)
    positions = integers("position_ids", position_ids)
    if positions.shape not in ((B, T), (1, T)):
        raise ValueError(f"position_ids: expected shape {(B, T)}, got {positions.shape}")
    if positions.min() < -1:
        raise ValueError(
            f"position_ids: expected -1 (nothing here) to 2**31 - 1, got {positions.min()}"
        )
    positions = np.where(mask, positions, -1)
    for row in positions:
        if (np.diff(row[row >= 0]) <= 0).any():
            raise ValueError(f"position_ids: expected to rise along a row, got {_cut(row)}")
    return positions


def _new_columns_of_mask(mask: Any, shape: tuple[int, int], cache: RollingCache) -> np.ndarray:
    B, T = shape
    if mask is None:
        return np.ones(shape, dtype=bool)
    mask = integers("attention_mask", mask, kinds="iub")
    if ((mask != 0) & (mask != 1)).any():
        raise ValueError("attention_mask: expected 1 for a token and 0 for padding, nothing else")
    if mask.shape not in ((B, T), (B, cache.columns + T)):
        past = f" or {(B, cache.columns + T)}, for all so far" if cache.columns else ""
        raise ValueError(
            f"attention_mask: expected shape {shape}, for the new tokens{past}; got {mask.shape}"
        )
    mask = mask.astype(bool)
    if mask.shape[1] > T:
        width = cache.mask.shape[1]
        if (mask[:, :width] != cache.mask).any() or not mask[:, width:-T].all():
            raise ValueError(
                "attention_mask: for earlier tokens it differs from that of earlier calls; "
                f"give it for the {T} new tokens alone, or unchanged"
            )
    return mask[:, -T:]


def columns_to_keep(logits_to_keep: Any, T: int) -> np.ndarray:
    """Return the columns for which `logits_to_keep` asks, rising."""
    if isinstance(logits_to_keep, int | np.integer) and not isinstance(logits_to_keep, bool):
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep: expected 0 (all) or more, got {logits_to_keep}")
        first = max(0, T - int(logits_to_keep)) if logits_to_keep else 0
        return np.arange(first, T, dtype=np.int64)
    if not isinstance(logits_to_keep, list | tuple | np.ndarray):
        raise ValueError(
            "logits_to_keep: expected how many of the last columns, or a list of columns, "
            f"got {type(logits_to_keep).__qualname__}"
        )
    columns = integers("logits_to_keep", [logits_to_keep])[0]
    columns = np.where(columns < 0, columns + T, columns)
    if (np.diff(columns) <= 0).any() or columns[0] < 0 or columns[-1] >= T:
        raise ValueError(
            f"logits_to_keep: expected rising columns of 0 to {T - 1}, got {_cut(columns)}"
        )
    return columns


def _cut(row: np.ndarray) -> str:
    return np.array2string(row, threshold=8, edgeitems=3, separator=", ", max_line_width=200)
