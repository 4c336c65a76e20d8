"""Everything a measurement could leave behind, before and after."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.laws.base import require
from microtome.signals.capture import random_states, restore_random

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def snapshot(model: nn.Module, data: Any) -> dict[str, Any]:
    """By name: hooks, modes, gradients, values, attributes, data and global state."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"training mode of '{name}'"] = module.training
        found[f"hooks of '{name}'"] = [len(getattr(module, kind)) for kind in _HOOKS]
        found[f"attributes of '{name}'"] = sorted(vars(module))
    for name, value in model.named_parameters():
        found[f"requires_grad of '{name}'"] = value.requires_grad
        found[f"grad of '{name}'"] = None if value.grad is None else (id(value.grad), value.grad.clone())
        found[f"parameter '{name}'"] = (id(value), value.detach().clone())
    for name, buffer in model.named_buffers():
        found[f"buffer '{name}'"] = (id(buffer), buffer.detach().clone())
    states = random_states()
    for i, raw in enumerate(data):  # reading a loader draws random numbers
        leaves = torch.utils._pytree.tree_leaves(raw)
        found[f"data of batch {i}"] = [t.clone() for t in leaves if isinstance(t, Tensor)]
    restore_random(states)
    found["random state of torch"] = torch.get_rng_state()
    kind, keys, *rest = np.random.get_state()
    found["random state of numpy"] = (str(kind), np.asarray(keys).tolist(), [float(x) for x in rest])
    found["random state of Python"] = random.getstate()
    found["gradient mode"] = torch.is_grad_enabled()
    found["default dtype"] = torch.get_default_dtype()
    found["number of threads"] = torch.get_num_threads()
    found["kernel switches"] = (
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    )
    return found


@contextmanager
def unchanged(model: nn.Module, data: Any) -> Iterator[None]:
    """Demand that the body leaves model, data and global state as found, also when it raises."""
    before = snapshot(model, data)
    try:
        yield
    finally:
        after = snapshot(model, data)
        for what, value in before.items():
            require(what in after and _same(value, after[what]), f"{what} is not left as found")
        for what in after:
            require(what in before, f"{what} is left behind")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
