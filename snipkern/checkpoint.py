"""State dicts of pruned models: written dense for others, read into a dense model to prune it as it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.converting import masked_pool
from snipkern.masks import Mask
from snipkern.nn import convert, state
from snipkern.nn.sparse_module import SparseModule
from snipkern.nn.state import MASK_SUFFIX, VALUES_SUFFIX
from snipkern.pool import Prunable
from snipkern.topology import build

__all__ = ["dense_state_dict", "load_"]


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict that the model would have if it were dense: same keys, zeros where pruned, no masks.

    For tools that know nothing of pruning (``save_pretrained(state_dict=...)``, inference engines, a dense copy). It
    also loads back into the pruned model.
    """
    found = model.state_dict()
    for name in convert.masks(model):
        module, leaf = convert.owner(model, name)
        for suffix in (MASK_SUFFIX, *state.LAYOUT_SUFFIXES):
            found.pop(name + suffix, None)
        if isinstance(module, SparseModule) and leaf in module.topologies:
            del found[name + VALUES_SUFFIX]
            found[name] = module.dense(leaf).detach()
    return found


def load_(model: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """Loads a pruned model's state dict, in place; a dense model is first pruned with the masks saved in it.

    State dicts don't tell how single weights are computed with: in a dense model they become csr's, also where they
    were covered by blocks. For those, ``sparsify_`` with the masks and ``engine="cover"`` comes first.

    Args:
        model: Dense, as before it was pruned, or pruned with the same masks.
        state_dict: From ``state_dict()`` of a pruned model (or of a dense one: then it is simply loaded).

    Returns:
        The model.

    Raises:
        ValueError: For a dense model that the state dict doesn't fit; it is untouched.
        RuntimeError: As ``load_state_dict``, for a pruned model.
    """
    names = [key.removesuffix(MASK_SUFFIX) for key in state_dict if _is_mask(key, state_dict)]
    if names and not convert.masks(model):
        _sparsify_like(model, names, state_dict)
    model.load_state_dict(state_dict)
    return model


def _is_mask(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Whether this is the entry that a sparse or masked module writes beside its weight."""
    weight = key.removesuffix(MASK_SUFFIX)
    value = state_dict[key]
    is_words = isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 1
    return key.endswith(MASK_SUFFIX) and is_words and (weight in state_dict or weight + VALUES_SUFFIX in state_dict)


def _sparsify_like(model: nn.Module, names: list[str], state_dict: Mapping[str, Any]) -> None:
    """Converts a dense model to what the state dict was saved from, after checking that all of it fits."""
    dense = model.state_dict()
    expected = {key: value.shape for key, value in dense.items() if isinstance(value, Tensor)}
    masks: dict[str, Mask] = {}
    for name in names:
        if name not in expected:
            raise ValueError(f"load_: the state dict must be of this model (got a mask for {name!r}, which it lacks)")
        words = state_dict[name + MASK_SUFFIX].cpu()
        try:
            masks[name] = Mask(words, expected[name])
        except ValueError as error:
            raise ValueError(f"load_: the mask of {name!r} must fit the model ({error})") from None
        expected[name + MASK_SUFFIX] = words.shape
        if name + VALUES_SUFFIX in state_dict:
            expected[name + VALUES_SUFFIX] = torch.Size([masks[name].count()])
            del expected[name]
        expected.update(state.expected_shapes(state_dict, name, masks[name]))
    got = {key: value.shape for key, value in state_dict.items() if isinstance(value, Tensor)}
    if got != expected:
        wrong = sorted(key for key in got.keys() | expected.keys() if got.get(key) != expected.get(key))
        shown = ", ".join(f"{k}: {_size(expected.get(k))} in the model, {_size(got.get(k))} given" for k in wrong[:3])
        raise ValueError(f"load_: the state dict must fit the model (got {len(wrong)} differences: {shown})")
    conversions = [_prepare(entry, masks[entry.fqn], state_dict) for entry in masked_pool(model, masks)]
    try:
        convert.sparse_changes(conversions)
    except ValueError as error:
        raise ValueError(f"load_: the state dict must be of a pruned model ({error})") from None
    convert.apply_(model, conversions)


def _prepare(entry: Prunable, mask: Mask, state_dict: Mapping[str, Any]) -> convert.Conversion:
    sparse = entry.fqn + VALUES_SUFFIX in state_dict
    try:
        layout = state.saved_layout(state_dict, entry.fqn, mask)
        if layout is not None and not sparse:
            build(mask, layout)  # says what doesn't fit
        return convert.prepare(entry.module, entry.name, mask, sparse, layout)
    except ValueError as error:
        raise ValueError(f"load_: the layout of {entry.fqn!r} must fit its mask ({error})") from None


def _size(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))
