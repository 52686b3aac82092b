"""Parameters: a checkpoint's tensors as the pytree of transformers' Flax classes, and back.

Matrices are transposed, but for the embedding:

model.layers.0.mlp.up_proj.weight (F, D)   model/layers/0/mlp/up_proj/kernel (D, F)
model.embed_tokens.weight (V, D)           model/embed_tokens/embedding (V, D)
model.norm.weight (D,)                     model/norm/weight (D,)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tinymistral.backend import Array

Params = dict[str, Any]  # nested dicts of arrays

# Kernels (in, out) whose outputs are divided over the model axis: heads, or widths.
DIVIDED_OUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
DIVIDED_IN = ("o_proj", "down_proj")


def to_params(tensors: Mapping[str, Any]) -> Params:
    """Nest a checkpoint's tensors by their names, matrices but the embedding transposed."""
    params: Params = {}
    for name, tensor in tensors.items():
        *modules, _ = name.split(".")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        if modules[-1] == "embed_tokens":
            node["embedding"] = tensor
        elif tensor.ndim == 1:
            node["weight"] = tensor
        else:
            node["kernel"] = tensor.T
    return params


def to_tensors(params: Params) -> dict[str, Array]:
    """Undo `to_params`."""
    tensors = {}
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        *modules, leaf = (key.key for key in path)
        tensors[".".join([*modules, "weight"])] = array.T if leaf == "kernel" else array
    return tensors


def placed(params: Params, mesh: Mesh | None) -> Params:
    """Copy NumPy arrays to the device, or divide them over the devices of a mesh."""
    return jax.tree_util.tree_map_with_path(
        lambda path, array: jax.device_put(
            np.ascontiguousarray(array), sharding(mesh, *axes_of(path), shape=array.shape)
        ),
        params,
    )


def axes_of(path: tuple[Any, ...]) -> tuple[str | None, ...]:
    """Return the axis of the mesh over which each dimension of a parameter is divided."""
    module = path[-2].key
    if module in DIVIDED_OUT:
        return (None, "model")
    return ("model", None) if module in (*DIVIDED_IN, "embed_tokens") else ()


def sharding(mesh: Mesh | None, *axes: str | None, shape: tuple[int, ...]) -> NamedSharding | None:
    """Return how an array is divided over a mesh, if any; not by an axis that does not divide it.

    `axes` names an axis of the mesh for each dimension, None for a dimension that is kept whole.
    """
    if mesh is None:
        return None
    sizes = dict(mesh.shape)
    fitting = (
        axis if axis in sizes and shape[n] % sizes[axis] == 0 else None
        for n, axis in enumerate(axes)
    )
    return NamedSharding(mesh, PartitionSpec(*fitting))
