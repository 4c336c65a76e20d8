"""Capture: a model becomes a graph of core ATen operations, each with the module path its reader knows.

``torch.export`` traces the model once on example arguments, in eval mode, with a dynamic batch dimension
where the program allows one; ``run_decompositions`` turns it into few operations (``operations.KEPT`` stay
whole). The model is left as found: training mode, random state, configuration. Hooks of the model are part
of the program and run once on shapes without numbers.
"""

from __future__ import annotations

import io
import logging
import operator
import random
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from microtome.batches import is_graph
from microtome.errors import SubjectError
from microtome.interpret.arguments import adapted, apart, needs_adapting, open_sizes
from microtome.interpret.graph import Graph, Kind, Node
from microtome.interpret.operations import KEPT, adaptive_maxima, aten, attention, attention_heads_last

# Operations that return auxiliary results nobody reads in eval mode, and the same with a single result.
_SINGLE: dict[Any, tuple[Any, Any]] = {
    aten._native_batch_norm_legit_no_training.default: (
        aten.batch_norm.default,
        lambda x, w, b, mean, var, momentum, eps: (x, w, b, mean, var, False, momentum, eps, False),
    ),
    aten.native_layer_norm.default: (
        aten.layer_norm.default,
        lambda x, shape, w, b, eps: (x, shape, w, b, eps, False),
    ),
    aten.native_group_norm.default: (
        aten.group_norm.default,
        lambda x, w, b, n, c, hw, groups, eps: (x, groups, w, b, eps, False),
    ),
    aten.max_pool2d_with_indices.default: (aten.max_pool2d.default, lambda *args: args),
    aten.max_pool3d_with_indices.default: (aten.max_pool3d.default, lambda *args: args),
}
_KINDS: dict[InputKind, Kind] = {
    InputKind.USER_INPUT: "input",
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def capture(
    model: nn.Module,
    example_args: Sequence[Any] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool = True,
    mode: Literal["eval", "as is"] = "eval",
) -> Graph:
    """Trace ``model(*example_args, **example_kwargs)`` in eval mode into a graph.

    The first dimension of every tensor may change afterwards, unless the program fixes it (``graph.notes``
    say so). Graph objects become dicts of their tensors, with numbers of nodes and edges that may change.
    ``mode="as is"`` keeps the mode the model is in; what it writes into its buffers is not part of the graph.
    """
    args, kwargs = tuple(example_args), dict(example_kwargs or {})
    notes: list[str] = []
    maxima: dict[int, int] = {}
    if model.training and mode == "eval":
        notes.append("captured in eval mode: train-mode normalisation and dropout are not part of the graph")
    with _left_as_found(model, mode):
        program, failure = None, None
        for given, named, free in _attempts(args, kwargs) if dynamic else [(args, kwargs, False)]:
            try:
                program = _export(model, given, named, free, maxima)
                break
            except Exception as error:
                failure = failure or error
        if program is None:
            assert failure is not None
            raise _explained(model, failure) from failure
        if failure is not None:
            reason = str(failure).strip().splitlines()[0][:200]
            notes.append(
                f"captured for the example's sizes only; with a dynamic batch export fails: {reason}"
            )
    if maxima:
        notes.append("the number of graphs (or of other groups that an index counts) is the example's")
    return _graph(model, program, kwargs, notes, maxima)


def _attempts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any, bool]]:
    """Arguments to try in turn: export would fix a batch of one, so that one is doubled first."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [t for t in leaves if isinstance(t, Tensor) and t.dim()]
    if tensors and all(len(t) == 1 for t in tensors) and not any(is_graph(leaf) for leaf in leaves):
        twice = pytree.tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.dim() else t, (args, kwargs))
        yield *twice, True
    yield args, kwargs, True
    yield args, kwargs, False


def _export(
    model: nn.Module, args: Any, kwargs: Any, dynamic: bool, maxima: dict[int, int]
) -> torch.export.ExportedProgram:
    maxima.clear()
    whole, sizes = (args, kwargs), open_sizes(args, kwargs)
    args, kwargs = apart(args, kwargs)
    with adapted(model, *whole, maxima) if needs_adapting(*whole) else nullcontext():
        shapes = None
        if dynamic:
            # One object per argument: shapes are looked up by identity, and a tensor may be passed twice.
            args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.view_as(t), (args, kwargs))
            collection = torch.export.ShapesCollection()
            for leaf, size in zip(pytree.tree_leaves((args, kwargs)), sizes, strict=True):
                if size is not None:
                    collection[leaf] = {size: torch.export.Dim.AUTO}
            shapes = collection.dynamic_shapes(model, args, kwargs)
        with _silent():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    table = dict(_decompositions(len(torch._C._dispatch_get_all_op_names())))
    table[aten.scaled_dot_product_attention.default] = attention
    table[aten.adaptive_max_pool2d.default] = table[aten.adaptive_max_pool3d.default] = adaptive_maxima
    try:
        return program.run_decompositions(table)
    except (RuntimeError, ValueError) as error:
        if "view" not in str(error):
            raise
    table[aten.scaled_dot_product_attention.default] = attention_heads_last
    return program.run_decompositions(table)


@lru_cache(maxsize=1)
def _decompositions(operations: int) -> Mapping[Any, Any]:
    """Torch's own, less what stays whole; gathered anew (a fifth of a capture) once there are further operations."""
    table = torch.export.default_decompositions()
    for operation in KEPT:
        table.pop(operation, None)
    return dict(table)


@contextmanager
def _left_as_found(model: nn.Module, mode: Literal["eval", "as is"]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    # Key-value caches are outputs that export cannot describe; an encoder-decoder's parts have settings of their own.
    settings = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in settings.values() if getattr(c, "use_cache", None) is True]
    state = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if mode == "eval":
            with suppress(NotImplementedError):  # an exported program stays in the mode it was exported in
                model.eval()
        for config in caching:
            config.use_cache = False
        try:
            yield
        finally:
            random.setstate(state)
            for config in caching:
                config.use_cache = True
            for module, before in modes.items():
                module.training = before


@contextmanager
def _silent() -> Iterator[None]:
    """Export prints the whole program it has so far when it fails; the error says what a user needs."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _explained(model: nn.Module, failure: Exception) -> SubjectError:
    """One sentence: what export could not do, the line of the user's code, and what helps."""
    text = str(failure)
    what = next((line.strip() for line in text.splitlines() if line.strip()), type(failure).__name__)
    where = _frame(text) or _frame("".join(traceback.format_tb(failure.__traceback__)))
    lowered = text.lower()
    if (
        "data-dependent" in lowered
        or "could not guard" in lowered
        or "unbackedsymint" in lowered.replace("_", "")
        or "faketensor" in lowered
    ):
        fix = "make branches and shapes depend on sizes instead of values (torch.where, or torch.cond)"
    elif "pytree" in lowered:
        fix = "return tensors, tuples or dicts (transformers: use_cache=False, return_dict=False)"
    elif isinstance(failure, TypeError):
        fix = "pass the arguments that the model's forward takes"
    else:
        fix = "write that line in plain PyTorch, or examine a part of the model that torch.export accepts"
    name = type(model).__name__
    return SubjectError("MT301", f"{name} cannot be captured: {what[:300]}", where=where, fix=fix)


def _frame(stack: str) -> str:
    """The innermost line outside torch and microtome in a printed stack: "net.py:12 (y = x + 1)"."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*(?:\n +([^\n]*))?', stack)
    for file, line, code in reversed(frames):
        inside = "/torch/" in file or "/microtome/interpret/" in file or file.startswith("<")
        if not inside:
            return f"{file}:{line}" + (f" `{code.strip()}`" if code and not code.startswith("File") else "")
    return ""


def _graph(
    model: nn.Module,
    program: torch.export.ExportedProgram,
    kwargs: Mapping[str, Any],
    notes: list[str],
    maxima: Mapping[int, int],
) -> Graph:
    """Copy the exported program into plain nodes, keeping only what leads to an output."""
    signature = program.graph_signature
    live = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    state: dict[str, Tensor] = {}
    placeholders: dict[str, tuple[Kind, Any]] = {}
    for spec in signature.input_specs:
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise SubjectError(
                "MT302",
                f"{type(model).__name__} takes an input of kind {spec.kind.name}",
                fix="pass tensors and plain numbers only",
            )
        placeholders[spec.arg.name] = (kind, spec.target)
        if kind != "input":
            assert spec.target is not None
            held = live.get(spec.target)
            state[spec.target] = program.state_dict.get(spec.target, held) if held is None else held
            if state[spec.target] is None:
                state[spec.target] = program.constants[spec.target]
    builder = _Builder(program.graph_module, placeholders)
    result = builder.build(program.graph_module.graph)
    outputs = tuple(
        value
        for value, spec in zip(result, signature.output_specs, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT
    )
    inputs = tuple(node for node in builder.nodes if node.kind == "input")
    nodes = _alive(builder.nodes, [value for value in outputs if isinstance(value, Node)], inputs)
    in_tree = program.call_spec.in_spec
    names = tuple(in_tree.children()[1].context) if kwargs else ()
    batches = [n.shape[0] for n in inputs if n.shape]
    dynamic = bool(batches) and all(isinstance(size, str) for size in batches)
    if not dynamic and not any("dynamic" in note for note in notes):
        fixed = [n.name for n in inputs if n.shape and isinstance(n.shape[0], int)]
        notes.append(f"the program fixes the first dimension of {', '.join(fixed)}")
    used = {node.target for node in nodes if node.kind in ("parameter", "buffer", "constant")}
    return Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=outputs,
        state={name: tensor for name, tensor in state.items() if name in used},
        input_tree=in_tree,
        output_tree=program.call_spec.out_spec,
        keywords=names,
        dynamic=dynamic,
        notes=tuple(notes),
        maxima={inputs[i]: number for i, number in maxima.items()},
    )


def _alive(nodes: Sequence[Node], outputs: Sequence[Node], inputs: Sequence[Node]) -> tuple[Node, ...]:
    wanted = {*outputs, *inputs}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(node.operands)
    return tuple(node for node in nodes if node in wanted)


class _Builder:
    """Turns an fx graph (and the graphs of wrappers inside it) into nodes."""

    def __init__(self, owner: nn.Module, placeholders: Mapping[str, tuple[Kind, Any]]) -> None:
        self.owner, self.placeholders = owner, placeholders
        self.nodes: list[Node] = []
        self.singles: set[Node] = set()
        self.calls: dict[tuple[str, str], int] = {}

    def build(
        self, graph: torch.fx.Graph, bound: Mapping[Any, Any] | None = None, prefix: str = ""
    ) -> Sequence[Any]:
        """Append this graph's nodes; ``bound`` gives the placeholders of an inner graph their values."""
        known: dict[torch.fx.Node, Any] = dict(bound or {})

        def look(tree: Any) -> Any:
            return torch.fx.node.map_arg(tree, lambda n: known[n])

        for source in graph.nodes:
            if source in known:
                continue
            if source.op == "output":
                return tuple(_plain(look(source.args[0])))
            if source.op == "get_attr":
                known[source] = operator.attrgetter(str(source.target))(self._owner(graph))
                continue
            if source.op == "placeholder":
                kind, target = self.placeholders[source.name]
                known[source] = self._add(source, kind, target, prefix=prefix)
                continue
            name = getattr(source.target, "_name", getattr(source.target, "__name__", ""))
            if name in _WRAPPERS:
                arguments = [look(argument) for argument in source.args]
                at = next(
                    i for i, argument in enumerate(arguments) if isinstance(argument, torch.fx.GraphModule)
                )
                inner = arguments[at]
                holes = [n for n in inner.graph.nodes if n.op == "placeholder"]
                values = dict(zip(holes, arguments[at + 1 :], strict=True))
                known[source] = self.build(inner.graph, values, prefix=f"{prefix}{source.name}.")
                continue
            args, kwargs = tuple(_plain(look(source.args))), dict(_plain(look(source.kwargs)))
            if source.target is operator.getitem:
                if args[0] in self.singles or (isinstance(args[0], tuple | list)):
                    known[source] = args[0] if args[0] in self.singles else args[0][args[1]]
                    continue
            elif source.target in _SINGLE and all(
                user.target is operator.getitem and user.args[1] == 0 for user in source.users
            ):
                target, rearrange = _SINGLE[source.target]
                user = next(iter(source.users), source)
                known[source] = self._add(
                    source, "operation", target, tuple(rearrange(*args)), {}, prefix, user
                )
                self.singles.add(known[source])
                continue
            known[source] = self._add(source, "operation", source.target, args, kwargs, prefix)
        return ()

    def _owner(self, graph: torch.fx.Graph) -> nn.Module:
        return graph.owning_module or self.owner

    def _add(
        self,
        source: torch.fx.Node,
        kind: Kind,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        prefix: str = "",
        result: torch.fx.Node | None = None,
    ) -> Node:
        value = (result or source).meta.get("val")
        tensor = isinstance(value, Tensor)
        path, call, module = _module(source.meta.get("nn_module_stack"))
        node = Node(
            name=prefix + source.name,
            kind=kind,
            target=target,
            args=args,
            kwargs=kwargs or {},
            path=path,
            call=call,
            module=module,
            shape=tuple(int(str(s)) if str(s).isdigit() else str(s) for s in value.shape) if tensor else None,  # type: ignore[union-attr]
            dtype=value.dtype if tensor else None,  # type: ignore[union-attr]
            where=_frame(source.meta.get("stack_trace") or ""),
        )
        self.nodes.append(node)
        return node


def _module(stack: Mapping[str, tuple[str, Any]] | None) -> tuple[str, int, str]:
    """("block1.relu", 1, "torch.nn.modules.activation.ReLU") for the second call of that module."""
    for key, (path, kind) in reversed(list((stack or {}).items())):
        if not key.startswith("_empty"):
            name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            number = re.search(r"@(\d+)$", key)
            return re.sub(r"@\d+", "", path), int(number[1]) if number else 0, name
    return "", 0, ""


def _plain(tree: Any) -> Any:
    """Fx's immutable lists and dicts as plain ones."""
    if isinstance(tree, tuple):
        return tuple(_plain(item) for item in tree)
    if isinstance(tree, list):
        return [_plain(item) for item in tree]
    if isinstance(tree, dict):
        return {key: _plain(item) for key, item in tree.items()}
    return tree
