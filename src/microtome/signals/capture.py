"""Watching a model work: calls by name, functional operations included; and putting back what was found.

A layer is a *call*, not a module: the second call of ``relu`` is ``relu#2``, and an ``F.relu`` inside
``block`` is ``block.relu``. Module calls are seen by hooks that live only during one forward; functional
calls by a torch-function mode, which works on any eager model and leaves nothing behind.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FUNCTIONAL = {
    "relu": "relu", "relu_": "relu", "gelu": "gelu", "silu": "silu", "sigmoid": "sigmoid", "tanh": "tanh",
    "leaky_relu": "leaky_relu", "elu": "elu", "selu": "selu", "celu": "celu", "softplus": "softplus",
    "hardtanh": "hardtanh", "relu6": "relu6", "mish": "mish", "hardswish": "hardswish", "prelu": "prelu",
    "logsigmoid": "logsigmoid", "softsign": "softsign", "threshold": "threshold", "glu": "glu",
    "max_pool1d": "max_pool", "max_pool2d": "max_pool", "max_pool3d": "max_pool", "_max_pool2d": "max_pool",
    "avg_pool1d": "avg_pool", "avg_pool2d": "avg_pool", "adaptive_avg_pool2d": "avg_pool",
    "adaptive_max_pool2d": "max_pool", "layer_norm": "layer_norm", "batch_norm": "batch_norm",
    "scaled_dot_product_attention": "attention", "linear": "linear", "conv1d": "conv", "conv2d": "conv",
    "conv3d": "conv", "embedding": "embedding", "multi_head_attention_forward": "attention",
}  # fmt: skip
"""Functional calls that count as layers, and the name each gets."""


@dataclass(frozen=True)
class Call:
    """One call seen during a forward."""

    name: str
    operation: str
    """Class name of the module, or the functional name."""
    module: nn.Module | None
    output: Any
    """Kept alive so that identities below stay unique during the probe."""
    mark: tuple[int, int] | None
    """Identity and version of the output: an in-place successor has the same identity, another version."""
    inputs: tuple[tuple[int, int], ...]
    """Marks of the tensors it was given, as they were before the call."""
    leaf: bool


def _marks(values: Any) -> tuple[tuple[int, int], ...]:
    return tuple((id(v), v._version) for v in values if isinstance(v, Tensor))


class StopForward(BaseException):
    """Raised from a hook when everything wanted has been seen."""


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for a call's output: itself, or the first floating-point one inside."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


def _mark(output: Any) -> tuple[int, int] | None:
    tensor = first_tensor(output)
    return None if tensor is None else (id(tensor), tensor._version)


def replace_first(value: Any, tensor: Tensor) -> Any:
    """The same output with its standing-in tensor replaced."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, tuple) and type(value) is tuple:
        items = list(value)
        for i, item in enumerate(items):
            if first_tensor(item) is not None:
                items[i] = replace_first(item, tensor)
                return tuple(items)
    return value


Visitor = Callable[[str, Any], Any]
"""Receives (call name, output); returns None, or the output to go on with."""


class _Scope:
    """Where execution is: the stack of module paths, and how often each call name has come up."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.counts: Counter[str] = Counter()

    def number(self, name: str) -> str:
        coming = self.coming(name)
        self.counts[name] += 1
        return coming

    def coming(self, name: str) -> str:
        """What the next call of this name is called."""
        count = self.counts[name] + 1
        return name if count == 1 else f"{name}#{count}"


class _FunctionWatcher(TorchFunctionMode):
    def __init__(
        self,
        scope: _Scope,
        native: set[str],
        visit: Visitor | None,
        seen: list[Call] | None,
        entered: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self.scope, self.native, self.visit, self.seen, self.entered = scope, native, visit, seen, entered

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        short = FUNCTIONAL.get(getattr(func, "__name__", ""))
        scope = self.scope
        if short is None or not scope.stack or scope.stack[-1] in self.native:
            return func(*args, **(kwargs or {}))
        given = _marks(args) if self.seen is not None else ()
        path = scope.stack[-1]
        plain = f"{path}.{short}" if path else short
        if self.entered is not None:
            self.entered(scope.coming(plain))
        scope.stack.append("\0inside")  # a functional call's own functional calls are not layers
        self.native.add("\0inside")
        try:
            output = func(*args, **(kwargs or {}))
        finally:
            scope.stack.pop()
        name = scope.number(plain)
        if self.seen is not None:
            self.seen.append(Call(name, short, None, output, _mark(output), given, True))
        if self.visit is not None:
            changed = self.visit(name, output)
            return output if changed is None else changed
        return output


def _is_native(module: nn.Module) -> bool:
    """A layer of torch itself: what it does inside is one call."""
    kind = type(module).__module__
    return kind.startswith(("torch.nn.modules", "torch.ao")) and not isinstance(
        module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.TransformerEncoderLayer, nn.TransformerEncoder,
                 nn.TransformerDecoderLayer, nn.TransformerDecoder, nn.Transformer)
    )  # fmt: skip


@contextmanager
def watching(
    model: nn.Module,
    visit: Visitor | None = None,
    wanted: frozenset[str] | None = None,
    seen: list[Call] | None = None,
    entered: Callable[[str], None] | None = None,
) -> Iterator[_Scope]:
    """Watch the next forward of ``model``.

    Args:
        visit: called with the name and output of every wanted call; may return a replacement.
        wanted: call names of interest (None: all).
        seen: when given, every call is appended here (for the probe).
        entered: called with the name each call is going to have, before it runs.
    """
    scope = _Scope()
    given: list[tuple[tuple[int, int], ...]] = []
    modules = dict(model.named_modules())
    native = {name for name, module in modules.items() if _is_native(module)}
    everything = seen is not None or wanted is None
    # Functional calls are attributed to the innermost module, so their names need every module's entry.
    functional = everything or any(_functional_name(name, modules) for name in wanted or ())
    hooked = modules if functional or entered else {n: m for n, m in modules.items() if n in _paths(wanted or ())}

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if entered is not None:
                entered(scope.coming(path))
            scope.stack.append(path)
            if seen is not None:
                given.append(_marks(args))

        return hook

    def after(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            scope.stack.pop()
            name = scope.number(path)
            if seen is not None:
                marks = given.pop()
                if path and not any(outer in native for outer in scope.stack):
                    leaf = path in native or not any(True for _ in module.children())
                    seen.append(Call(name, type(module).__name__, module, output, _mark(output), marks, leaf))
            if visit is not None and (wanted is None or name in wanted):
                return visit(name, output)
            return None

        return hook

    def visit_functional(name: str, output: Any) -> Any:
        return visit(name, output) if visit is not None and (wanted is None or name in wanted) else None

    with ExitStack() as stack:
        for path, module in hooked.items():
            stack.callback(module.register_forward_pre_hook(before(path)).remove)
            stack.callback(module.register_forward_hook(after(path)).remove)
        if functional or entered is not None:
            stack.enter_context(_FunctionWatcher(scope, native, visit_functional, seen, entered))
        yield scope


def _paths(names: Any) -> set[str]:
    return {name.split("#", 1)[0] for name in names}


def _functional_name(name: str, modules: Mapping[str, nn.Module]) -> bool:
    return name.split("#", 1)[0] not in modules


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Everything a measurement could disturb is the same after as before, also after an exception.

    Training flags, ``requires_grad``, ``.grad``, buffers, and the random state of torch, CUDA, numpy and
    Python. Parameters are never written (the engine runs the model functionally), so they need no copy.
    """
    training = {module: module.training for module in model.modules()}
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone(), b._version) for b in model.buffers()]
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.TransformerEncoder skips its submodules, hooks and all.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in training.items():
            module.training = mode
        for parameter, requires, grad in flags:
            parameter.requires_grad_(requires)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, copy, version in buffers:
                if buffer._version != version and not torch.equal(buffer, copy):
                    buffer.copy_(copy)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
