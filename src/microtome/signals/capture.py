"""Watching a model work: calls by name, functional operations included; and putting back what was found.

A layer is a *call*, not a module: the second call of ``relu`` is ``relu#2``, and an ``F.relu`` inside
``block`` is ``block.relu``. Module calls are seen by hooks that live only during one forward; functional
calls by a torch-function mode, which works on any eager model and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    inputs: tuple[tuple[tuple[int, int], Tensor], ...]
    """Marks of the tensors it was given, as they were before the call, and the tensors, kept alive for the
    same reason: the identity of a sum that only a rectifier saw would else come up again."""
    leaf: bool


def _marks(values: Any) -> tuple[tuple[tuple[int, int], Tensor], ...]:
    return tuple(((id(v), v._version), v) for v in values if isinstance(v, Tensor))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class StopForward(BaseException):
    """Raised from a hook when everything wanted has been seen."""


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that stands for a call's output: itself, or the first floating-point one inside."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    for _, item in _items(value):
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return []


def _mark(output: Any) -> tuple[int, int] | None:
    tensor = first_tensor(output)
    return None if tensor is None else (id(tensor), tensor._version)


def replace_first(value: Any, tensor: Tensor) -> Any:
    """The same output with its standing-in tensor replaced; containers are copied, never changed."""
    if isinstance(value, Tensor):
        return tensor
    for key, item in _items(value):
        if first_tensor(item) is None:
            continue
        new = replace_first(item, tensor)
        if isinstance(value, tuple):
            items = [*value[:key], new, *value[key + 1 :]]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        changed = copy.copy(value)
        if isinstance(value, (Mapping, list)):
            changed[key] = new
        else:
            object.__setattr__(changed, key, new)
        return changed
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


@dataclass(frozen=True)
class _Traced:
    """Where a call of a traced program comes from: its graph knows the modules that are no more."""

    name: str
    operation: str


def _traced_calls(model: nn.Module) -> list[_Traced] | None:
    """The functional calls of an exported or traced program in order, or None for any other model."""
    if not isinstance(model, torch.fx.GraphModule):
        return None
    calls = []
    for node in model.graph.nodes:
        short = FUNCTIONAL.get(getattr(node.target, "__name__", "").partition(".")[0])
        if node.op != "call_function" or short is None:
            continue
        stack = [(path, kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values()]
        path, kind = stack[-1] if stack else ("", "")
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if kind.startswith("torch.nn.modules."):
            calls.append(_Traced(path, kind.rsplit(".", 1)[-1]))
        else:
            calls.append(_Traced(f"{path}.{short}" if path else short, short))
    return calls


class _FunctionWatcher(TorchFunctionMode):
    def __init__(
        self,
        scope: _Scope,
        native: set[str],
        visit: Visitor | None,
        seen: list[Call] | None,
        entered: Callable[[str], None] | None,
        modules: Mapping[str, nn.Module],
        traced: Iterator[_Traced] | None,
    ) -> None:
        super().__init__()
        self.scope, self.native, self.visit, self.seen, self.entered = scope, native, visit, seen, entered
        self.modules, self.traced = modules, traced

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        short = FUNCTIONAL.get(getattr(func, "__name__", "").partition(".")[0])
        scope = self.scope
        if short is None or not scope.stack or scope.stack[-1] in self.native:
            return func(*args, **(kwargs or {}))
        given = _marks(args) if self.seen is not None else ()
        path = scope.stack[-1]
        traced = next(self.traced, None) if self.traced is not None else None
        if traced is None:
            plain, operation, module = f"{path}.{short}" if path else short, short, None
            if plain in self.modules:  # a module has the very name this call would get
                plain = f"{path}.F.{short}" if path else f"F.{short}"
        else:
            plain, operation, module = traced.name, traced.operation, self.modules.get(traced.name)
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
            self.seen.append(Call(name, operation, module, output, _mark(output), given, True))
        if self.visit is not None:
            changed = self.visit(name, output)
            return output if changed is None else changed
        return output


_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.TransformerEncoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoderLayer,
    nn.TransformerDecoder,
    nn.Transformer,
)


def _is_native(module: nn.Module) -> bool:
    """A layer of torch itself: what it does inside is one call."""
    kind = type(module).__module__
    return kind.startswith(("torch.nn.modules", "torch.ao")) and not isinstance(module, _CONTAINERS)


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
    given: list[tuple[tuple[tuple[int, int], Tensor], ...]] = []
    modules = dict(model.named_modules())
    native = {name for name, module in modules.items() if _is_native(module)}
    everything = seen is not None or wanted is None
    # Functional calls are attributed to the innermost module, so their names need every module's entry.
    traced = _traced_calls(model)
    functional = everything or bool(traced) or any(_functional_name(name, modules) for name in wanted or ())
    hooked = (
        modules if functional or entered else {n: m for n, m in modules.items() if n in _paths(wanted or ())}
    )

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
            if visit is None or (wanted is not None and name not in wanted):
                return None
            if watcher is None:
                return visit(name, output)
            # What the visitor computes is none of the network's calls.
            with torch._C.DisableTorchFunction():
                return visit(name, output)

        return hook

    def visit_functional(name: str, output: Any) -> Any:
        return visit(name, output) if visit is not None and (wanted is None or name in wanted) else None

    watcher: _FunctionWatcher | None = None
    if functional or entered is not None:
        calls = None if traced is None else iter(traced)
        watcher = _FunctionWatcher(scope, native, visit_functional, seen, entered, modules, calls)
    with ExitStack() as stack:
        for path, module in hooked.items():
            stack.callback(module.register_forward_pre_hook(before(path)).remove)
            stack.callback(module.register_forward_hook(after(path)).remove)
        if watcher is not None:
            stack.enter_context(watcher)
        yield scope


def _paths(names: Any) -> set[str]:
    return {name.split("#", 1)[0] for name in names}


def _functional_name(name: str, modules: Mapping[str, nn.Module]) -> bool:
    return name.split("#", 1)[0] not in modules


def to_eval(model: nn.Module) -> bool:
    """Eval mode; returns False for an exported program, which stays in the mode it was exported in."""
    try:
        model.eval()
    except NotImplementedError:
        return False
    return True


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Everything a measurement could disturb is the same after as before, also after an exception.

    Training flags, ``requires_grad``, ``.grad``, buffers, and the random state of torch, CUDA, numpy and
    Python. Parameters are never written (the engine runs the model functionally), so they need no copy. Inside,
    no parameter asks for a gradient, so that autograd saves nothing for those that nobody differentiates by, and
    compiled parts run as they were written: compiled ones show no layers, and every new shape would compile anew.
    """
    training = {module: module.training for module in model.modules()}
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    held = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    # Inference tensors count no versions; nothing may write to them anyway.
    buffers = [(b, b.detach().clone(), b._version) for b in model.buffers() if not b.is_inference()]
    states = random_states()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.TransformerEncoder skips its submodules, hooks and all.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        to_eval(model)
        for parameter, requires, _ in flags:
            if requires:
                parameter.requires_grad_(False)
        # Whoever calls from within inference_mode would otherwise get tensors autograd cannot use.
        with torch.inference_mode(False), _eager():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in training.items():
            module.training = mode
        for parameter, requires, grad in flags:
            parameter.requires_grad_(requires)
            parameter.grad = grad
        for module, name, buffer in held:
            module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, saved, version in buffers:
                if buffer._version != version and not torch.equal(buffer, saved):
                    buffer.copy_(saved)
        restore_random(states)


@contextmanager
def buffers_in_place(tables: Sequence[dict[str, Tensor | None]]) -> Iterator[None]:
    """Buffers that a forward binds anew are put back: those of a transformed call would break the next one.

    Args:
        tables: where the model's modules keep their buffers.
    """
    held = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, before in zip(tables, held, strict=True):
            for name, buffer in before.items():
                if table.get(name) is not buffer:
                    table[name] = buffer


def _eager() -> contextlib.AbstractContextManager[Any]:
    if (
        "torch._dynamo.eval_frame" not in sys.modules
    ):  # nothing was ever compiled, and importing it takes a second
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside what speeds it up or spreads it over devices, and the names of these wrappers."""
    names: list[str] = []
    while True:
        kind = type(model)
        if kind.__module__.startswith("torch._dynamo") and hasattr(model, "_orig_mod"):
            inner: Any = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            return model, tuple(names)
        names.append("torch.compile" if kind.__name__ == "OptimizedModule" else kind.__name__)
        model = inner


RandomStates = tuple[Tensor, Any, Any, list[Tensor] | None]


def random_states() -> RandomStates:
    """The random state of torch, numpy, Python and CUDA."""
    cuda = (
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    )
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def restore_random(states: RandomStates) -> None:
    """Put back what :func:`random_states` gave."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state_all(states[3])


def seed_random(seed: int) -> None:
    """Begin all of them at a seed, so that random augmentation comes out the same on every pass."""
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
