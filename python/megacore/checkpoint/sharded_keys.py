"""Names of tensors inside a `torch_dist` checkpoint, which are those of Megatron-Core.

The layers of a stack are one tensor there, with the layer as its first dimension:
`decoder.layers.3.mlp.linear_fc1.weight` is slice 3 of `decoder.layers.mlp.linear_fc1.weight`.
State of the optimizer is `optimizer.state.<kind>.<key of the parameter>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MODEL, OPTIMIZER, RNG = "model", "optimizer", "rng"
GROUPS = (MODEL, OPTIMIZER, RNG)

_STATE = "optimizer.state."
_RANDOM = "rng_state."
# Kind of optimizer state here -> there.
_KINDS = {"main_param": "fp32_param"}
_KINDS_HERE = {there: here for here, there in _KINDS.items()}

# The first part of a name that is "layers", and what follows it.
_STACK = re.compile(r"(?P<stack>(?:.*?\.)??layers)\.(?P<rest>.+)")
_LAYER = re.compile(r"(?P<layer>0|[1-9]\d*)\.(?P<rest>.+)")
_CHAINED = re.compile(r"chained_\d+\.")


@dataclass(frozen=True)
class ShardedKey:
    """Where a tensor is in a checkpoint.

    Attributes:
        key: Of the stored tensor.
        layer: Which slice of its first dimension; None when it is all of the stored tensor.
    """

    key: str
    layer: int | None = None


def stacked_key(group: str, name: str) -> ShardedKey:
    """The key of a tensor as a slice of the tensor of all layers, if it belongs to a layer."""
    prefix, rest = _prefix(group, name)
    stack = _STACK.fullmatch(rest) if group != RNG else None
    layer = _LAYER.fullmatch(stack["rest"]) if stack else None
    if stack is None or layer is None:
        return ShardedKey(prefix + rest)
    return ShardedKey(f"{prefix}{stack['stack']}.{layer['rest']}", int(layer["layer"]))


def single_key(group: str, name: str) -> ShardedKey:
    """The key of a tensor on its own, for layers that are not all alike."""
    prefix, rest = _prefix(group, name)
    return ShardedKey(prefix + rest)


def _prefix(group: str, name: str) -> tuple[str, str]:
    if group == OPTIMIZER:
        kind, dot, rest = name.partition(".")
        return f"{_STATE}{_KINDS.get(kind, kind)}{dot}", rest
    return (_RANDOM if group == RNG else ""), name


def place_of(key: str) -> tuple[str, str, bool]:
    """What a stored tensor is.

    Returns:
        Its group; its name, for a stack with a "{}" in the place of the layer; whether it is a
        stack of layers.
    """
    group, prefix, rest = MODEL, "", _CHAINED.sub("", key, count=1) if _chained(key) else key
    if rest.startswith(_STATE):
        kind, dot, rest = rest.removeprefix(_STATE).partition(".")
        group, prefix = OPTIMIZER, _KINDS_HERE.get(kind, kind) + dot
    elif rest.startswith(_RANDOM):
        return RNG, rest.removeprefix(_RANDOM), False
    stack = _STACK.fullmatch(rest)
    if stack is None or stack["rest"].partition(".")[0].isdecimal():
        return group, prefix + rest, False
    return group, f"{prefix}{stack['stack']}.{{}}.{stack['rest']}", True


def _chained(key: str) -> bool:
    match = _CHAINED.match(key)
    return match is not None and key[match.end() :].startswith(_STATE)


def layer_names(name: str, num_layers: int) -> Iterator[str]:
    """The names of the slices of a stack, whose name has a "{}" for the layer."""
    before, _, after = name.partition("{}")
    return (f"{before}{layer}{after}" for layer in range(num_layers))


def is_unambiguous(group: str, name: str) -> bool:
    """Whether a tensor of this name is read under this name again."""
    stacked = stacked_key(group, name)
    read_group, read_name, is_stack = place_of(stacked.key)
    if is_stack != (stacked.layer is not None):
        return False
    if stacked.layer is not None:
        read_name = read_name.replace("{}", str(stacked.layer), 1)
    return (read_group, read_name) == (group, name) and place_of(single_key(group, name).key) == (
        group,
        name,
        False,
    )
