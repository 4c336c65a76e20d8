"""The subject: a network, its data and its task, probed on one batch before anything is measured."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from microtome.batches import TARGET_KEYS, Batch, Layout, Signature, as_graph, find_layout, with_site_index
from microtome.errors import MicrotomeError, Refusal, SubjectError, UsageError, nearest, place, told
from microtome.signals.capture import (
    Call,
    first_tensor,
    is_out_of_memory,
    left_as_found,
    seed_random,
    to_eval,
    unwrapped,
    watching,
)
from microtome.task import IGNORE, Task, check_kind, given_task, infer_task, primary_output
from microtome.vocabulary import Words, carried, read_vocabulary, words_of

if TYPE_CHECKING:
    from microtome.interpret import Graph, Node

PROBE_ROWS = 32
DATASET_BATCH = 64

_KINDS: dict[str, tuple[str, ...]] = {
    "convolution": ("Conv", "conv"),
    "normalisation": ("Norm", "norm"),
    "embedding": ("Embedding", "embedding"),
    "recurrent": ("LSTM", "GRU", "RNN"),
    "attention": ("Attention", "attention"),
    "pooling": ("Pool", "pool"),
    "activation": (
        "ReLU", "relu", "GELU", "gelu", "SiLU", "silu", "Sigmoid", "sigmoid", "Tanh", "tanh", "ELU", "elu",
        "Softplus", "softplus", "Mish", "mish", "Hardtanh", "Hardswish", "hardtanh", "hardswish", "Softsign",
        "softsign", "LogSigmoid", "logsigmoid", "Threshold", "threshold", "GLU", "glu", "CELU", "Softmax",
    ),
    "linear": ("Linear", "linear", "Bilinear"),
}  # fmt: skip
_TRANSPARENT = ("Dropout", "Identity", "Flatten", "Unflatten")


@dataclass(frozen=True)
class Layer:
    """One call of the network that answers per example.

    Attributes:
        name: ``features.3``, ``relu#2`` (second call), ``block.relu`` (functional call inside ``block``).
        operation: class or function name.
        kind: linear, convolution, normalisation, activation, pooling, embedding, recurrent, attention,
            message-passing, other.
        shape: of one example's output.
        batch_dimension: where examples run in the output (0 unless a recurrent layer says otherwise).
        feature_dimension: where units (channels, hidden units) run once examples are in dimension 0.
        parameters: names of the tensors its module owns.
        representation: whether its output is a finished value, not at once normalised or activated.
    """

    name: str
    operation: str
    kind: str
    shape: tuple[int, ...]
    batch_dimension: int
    feature_dimension: int
    parameters: tuple[str, ...]
    representation: bool

    @property
    def elements(self) -> int:
        """Numbers one example's output holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def units(self) -> int:
        """Channels or hidden units."""
        return self.shape[self.feature_dimension - 1] if self.feature_dimension > 0 else self.shape[-1]


def _words(given: Any, *carriers: Any) -> Words | None:
    """What turns token ids into text."""
    if given is None:
        return carried(*carriers)
    found = words_of(read_vocabulary(given) if isinstance(given, str | os.PathLike) else given)
    if found is None:
        fix = "give a list of words, a dict, a tokenizer or the path of its file"
        raise UsageError("MT517", f"a {type(given).__name__} does not turn token ids into text", fix=fix)
    return found


class Subject:
    """A network with its data and task.

    Args:
        model: any ``nn.Module``; it is measured in place and left as found.
        data: any iterable of batches; see :mod:`microtome.batches` for the shapes that are understood.
        task: one of :data:`microtome.task.KINDS` when the inference would be wrong.
        name: what reports call it.
        bounds: range of valid inputs, e.g. ``(0, 1)``; attacks stay inside.
        inputs, target: keys of dict batches.
        label_offset: smallest label, when labels do not start at 0.
        outputs: "logits" or "probs"; None lets the probe tell.
        tokenizer: what turns token ids into text: see :func:`microtome.vocabulary.words_of`, or a path that
            :func:`microtome.vocabulary.read_vocabulary` reads. None: what batches (as a key of a dict), the data or the
            network carry as "tokenizer" or "vocabulary".
        device: where to measure; default: where the model is.
        source: where it came from (import path, files), so that a run can be repeated.

    Raises:
        SubjectError: MT2xx, MT522, MT524 and MT525, naming what does not fit and what to do.
        UsageError: MT523, no such device; MT515 to MT517, a tokenizer that cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        *,
        task: str | None = None,
        name: str | None = None,
        bounds: tuple[float, float] | None = None,
        inputs: Sequence[str] | None = None,
        target: str | None = None,
        label_offset: int = 0,
        outputs: str | None = None,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise _no_network(model)
        if outputs not in (None, "logits", "probs"):
            raise UsageError("MT123", f"outputs is 'logits' or 'probs', got {outputs!r}")
        model, wrappers = unwrapped(model)
        self.model = model
        self.name = name or type(model).__name__
        self.source = dict(source or {})
        self.statements: tuple[str, ...] = ()
        if wrappers:
            self._say(f"the network is wrapped by {' and '.join(wrappers)}: what is inside is measured")
        _check_values(model)
        if any(p.is_inference() for p in model.parameters()):
            self.model = model = copy.deepcopy(model)
            self._say("parameters were made in inference mode, which autograd cannot use: a copy is measured")
        if device is not None:
            _move(model, device)
        tensors = itertools.chain(model.parameters(), model.buffers())
        self.device = next((t.device for t in tensors), torch.device("cpu"))
        self.data, said = _repeatable(data)
        self.statements += said
        check_kind(task)
        with left_as_found(model):
            # A loader draws from the global random state, so reading is under protection too.
            seed_random(0)
            raw = _first(self.data)
            self._probe(raw, task, inputs, target, label_offset, outputs, bounds)
            self.words: Words | None = _words(
                tokenizer, raw, self.data, getattr(self.data, "dataset", None), model
            )
            seed_random(0)
            self.examples = self._count()

    # -- what it is ------------------------------------------------------------------------------

    @property
    def classes(self) -> int | None:
        """Number of classes or labels, None in regression."""
        return self.task.classes

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Real-valued parameters by name, shared ones once; detached, not to be modified."""
        return {n: p.detach() for n, p in self.model.named_parameters() if p.is_floating_point()}

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers by name."""
        return {n: b.detach() for n, b in self.model.named_buffers()}

    @cached_property
    def buffer_tables(self) -> tuple[dict[str, Tensor | None], ...]:
        """Where its modules keep their buffers."""
        return tuple(module._buffers for module in self.model.modules() if module._buffers)

    @cached_property
    def shares_parameters(self) -> bool:
        """Whether a tensor goes by several names (tied weights)."""
        names = [id(t) for t in self.model.parameters()] + [id(t) for t in self.model.buffers()]
        every = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        return len(every) > len(names)

    @cached_property
    def places(self) -> dict[str, tuple[dict[str, Tensor | None], str]]:
        """Where the model keeps each parameter and buffer: a module's own table, and the name in it."""
        return {
            f"{path}.{name}" if path else name: (table, name)
            for path, module in self.model.named_modules(remove_duplicate=False)
            for table in (module._parameters, module._buffers)
            for name in table
        }

    @property
    def has_structure(self) -> bool:
        """Whether its data are graphs with an ``edge_index``."""
        return self._few.structure is not None

    @property
    def parameter_count(self) -> int:
        """Numbers in all parameters."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def graph(self) -> Graph:
        """The exported program on the first batch, captured once when it is first asked for.

        Raises:
            Refusal: when the network cannot be captured; says why.
        """
        return self.graph_of(self._few)

    def graph_of(self, batch: Batch) -> Graph:
        """The program for batches of these sizes; only the number of examples may differ.

        Raises:
            Refusal: when the network cannot be captured; says why.
        """
        from microtome.interpret import capture

        key: tuple[Any, ...] = tuple(
            tuple(leaf.shape[1:]) if on and batch.divisible else tuple(leaf.shape)
            for leaf, on in zip(batch.leaves(), batch.batched, strict=True)
            if isinstance(leaf, Tensor)
        )
        if batch.whole:  # pooling layers count the graphs of a batch, and the program is for so many
            key = (*key, len(batch) if self.layout.per_graph else 0)
        if key not in self._graphs:
            if batch.moved:
                self._graphs[key] = (
                    "the program is not captured when examples run along dimension 1 of the inputs: "
                    "give batches with examples along dimension 0"
                )
            else:
                # Few rows of the batch, and more than one: export would take one for a fixed size.
                few = batch.take(slice(0, 4)) if batch.divisible else batch
                args, kwargs = few.call()
                try:
                    graph = capture(self.model, args, kwargs)
                    self._graphs[key] = replace(graph, answer=_answer(graph))
                except SubjectError as error:
                    self._graphs[key] = str(error)
        found = self._graphs[key]
        if isinstance(found, str):
            raise Refusal(found)
        return found

    @cached_property
    def _graphs(self) -> dict[Any, Graph | str]:
        return {}

    def split_parameters(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a flat [p] (or [k, p]) vector into tensors of the parameters' shapes."""
        sizes = [p.numel() for p in self.parameters.values()]
        parts = vector.split(sizes, dim=-1)
        lead = vector.shape[:-1]
        return {
            name: part.reshape(*lead, *p.shape)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    @property
    def representations(self) -> tuple[Layer, ...]:
        """The layers whose outputs are finished values; what most questions about layers mean."""
        return tuple(layer for layer in self.layers if layer.representation) or self.layers

    def layer(self, name: str) -> Layer:
        """Look a layer up.

        Raises:
            UsageError: MT124 with the nearest names.
        """
        found = self._by_name.get(name)
        if found is None:
            raise UsageError(
                "MT124", f"no layer is called '{name}'", where=self.name, fix=nearest(name, self._by_name)
            )
        return found

    def rows_of(self, name: str, tensor: Tensor, pick: Tensor | None = None) -> Tensor:
        """A layer's output with examples along dimension 0 (the picked nodes of a graph)."""
        dimension = self._by_name[name].batch_dimension if name in self._by_name else 0
        moved = tensor.movedim(dimension, 0) if dimension else tensor
        return moved if pick is None else moved[pick]

    def describe(self) -> dict[str, Any]:
        """Plain facts, for the store and the report."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "task": self.task.kind,
            "classes": self.task.classes,
            "parameters": self.parameter_count,
            "examples": self.examples,
            "layers": len(self.layers),
            "input": list(self.input_shape) if self.input_shape else None,
            "bounds": list(self.bounds) if self.bounds else None,
            "device": str(self.device),
            "dtype": str(self.dtype).replace("torch.", ""),
            "inferred": list(self.statements),
            "model_hash": self.fingerprint,
            "source": self.source,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the weights."""
        digest = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.model.state_dict().items()):
            if not isinstance(value, Tensor):
                continue
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    # -- its data --------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """The data, batch by batch, as the loader cuts it.

        Raises:
            SubjectError: MT206 for NaN or infinite inputs, MT205 for labels out of range, MT201 for a batch
                that cannot be read, MT522 for data that raise.
        """
        start = 0
        for index, raw in enumerate(_reading(self.data)):
            batch = self._read(raw, start, self.device, index)
            check_finite(batch, index)
            if batch.targets is not None and self.task.categorical:
                check_labels(self.task, batch.targets, where=f"batch {index}")
            start += len(batch)
            if len(batch):
                yield batch

    def _read(self, raw: Any, start: int, device: torch.device, index: int) -> Batch:
        try:
            return self.layout.read(raw, start, device)
        except SubjectError as error:
            where = f"batch {index}" + (f", {error.where}" if error.where else "")
            raise SubjectError(error.code, error.what, where=where, fix=error.fix) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            raise SubjectError(
                "MT201",
                f"batch {index} cannot be read like the first one: {reason}",
                where=self.layout.statement,
            ) from error

    def _count(self) -> int:
        loader = self.data
        size, sampler = getattr(loader, "batch_size", None), getattr(loader, "sampler", None)
        if size and hasattr(sampler, "__len__") and self.layout.kind in ("pair", "dict", "tensor"):
            count = len(sampler)  # type: ignore[arg-type]
            return count // size * size if getattr(loader, "drop_last", False) else count
        cpu = torch.device("cpu")
        return sum(len(self._read(raw, 0, cpu, index)) for index, raw in enumerate(_reading(self.data)))

    # -- the probe -------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        if text:
            self.statements += (text,)

    def _probe(
        self,
        raw: Any,
        task: str | None,
        inputs: Sequence[str] | None,
        target: str | None,
        label_offset: int,
        outputs: str | None,
        bounds: tuple[float, float] | None,
    ) -> None:
        self.layout: Layout = find_layout(self.model, raw, inputs, target)
        whole = self.layout.read(raw, 0, self.device)
        if len(whole) == 0:
            raise SubjectError("MT209", "the first batch holds no examples")
        check_finite(whole, 0)
        batch = whole.take(slice(0, PROBE_ROWS)) if whole.divisible else whole
        # The probe works on copies until it is known whether the model writes into its inputs.
        batch = replace(batch, copied=True)
        fixed = False
        try:
            output = self._forward(batch)
        except SubjectError as error:
            asked = self._with_targets(raw, len(batch))
            if asked is not None:
                batch, output = asked
            elif self.layout.kind == "pair" and not self.layout.unpack and len(raw) > 2:
                words = f"batches hold {len(raw)} things, and forward takes one input"
                raise SubjectError(
                    error.code, error.what, where=error.where, fix=f"{words}: yield (x, y)"
                ) from error
            elif len(batch) == len(whole):
                raise error
            else:
                # A program exported for one batch size takes no other.
                batch, fixed = replace(whole, copied=True), True
                output = self._forward(batch)
        batch, output = self._settle_layout(raw, batch, output)
        self._say(self.layout.statement)
        if batch.moved:
            self._say("examples run along dimension 1 of the inputs, as the number of targets shows")
        if self.layout.copied:
            self._say("the network writes into its inputs: it is given copies")
        if not bool(torch.isfinite(output).all()):
            raise SubjectError(
                "MT207",
                "the outputs of the first batch hold NaN or infinity though its inputs are finite",
                where=_first_bad(self._watched(batch)),
                fix="look at the weights and normalisation of that layer",
            )
        self.dtype = output.dtype
        self.has_targets = whole.targets is not None
        # Layers are told from few rows: all their outputs are held at once.
        few, twin, twin_calls, twin_output = batch, None, None, None
        if batch.divisible and not fixed:
            # One example is compared with itself twice over, which also shows where examples run.
            sizes = (torch.arange(min(len(batch), 4)), torch.arange(min(len(batch), 4) // 2))
            rows = sizes if len(batch) > 1 else (torch.arange(1), torch.zeros(2, dtype=torch.long))
            try:
                few, twin = (batch.take(r) for r in rows)
                twin_output, twin_calls = self._forward(twin), self._watched(twin)
            except SubjectError:
                few, twin, fixed = batch, None, True
        calls = self._watched(few)
        self._few = few
        found = infer_task(
            output, batch, task, nodes=self.layout.kind == "graph" and not self.layout.per_graph
        )
        self.task: Task = found if task is None else given_task(task, found, output)
        self._say(self.task.statement)
        self._find_layers(calls, few, twin_calls, None if twin is None else len(twin))
        self._check_repeat(batch, output)
        self._check_independence(batch, output, twin, twin_output, fixed)
        if not self.independent_rows:
            self.layout = replace(self.layout, whole=True)
        self._check_outputs(output, outputs)
        self._check_labels(output, batch, label_offset)
        self._check_bounds(batch, bounds)
        self._modes()

    def _with_targets(self, raw: Any, rows: int) -> tuple[Batch, Tensor] | None:
        """Its first rows and outputs when it is given the targets too, which some need before they answer at all."""
        argument = next((n for n in TARGET_KEYS if n in Signature.of(self.model).names), None)
        if argument is None or self.layout.kind not in ("pair", "dict") or argument in self.layout.input_keys:
            return None
        plain = self.layout
        self.layout = replace(
            plain, target_argument=argument,
            statement=f"{plain.statement}; the model is given {argument} too, for without them it does not run",
        )  # fmt: skip
        try:
            whole = self.layout.read(raw, 0, self.device)
            batch = replace(whole.take(slice(0, rows)), copied=True)
            return batch, self._forward(batch)
        except SubjectError:
            self.layout = plain
            return None

    def _settle_layout(self, raw: Any, batch: Batch, output: Tensor) -> tuple[Batch, Tensor]:
        """What only a forward tells: inputs written to, answers at one position only, answers for graphs."""
        layout = replace(self.layout, copied=self._writes)
        targets = batch.targets
        if (
            targets is None
            and layout.kind == "graph"
            and output.shape[0] == getattr(as_graph(raw), "num_graphs", 1)
        ):
            layout = replace(
                layout, per_graph=True, statement=layout.statement.replace("are nodes", "are graphs")
            )
        if (
            layout.kind in ("pair", "dict") and targets is not None and output.dim() == 3
            and output.shape[1] == 1 != targets.reshape(len(targets), -1).shape[1]
        ):  # fmt: skip
            argument = next((n for n in TARGET_KEYS if n in Signature.of(self.model).names), None)
            if argument is not None:
                layout = replace(
                    layout, target_argument=argument,
                    statement=f"{layout.statement}; the model is given {argument} too, for without them it "
                    "answers at the last position only",
                )  # fmt: skip
        again = (
            layout.target_argument != self.layout.target_argument or layout.per_graph != self.layout.per_graph
        )
        if layout == self.layout:
            return replace(batch, copied=False), output
        self.layout = with_site_index(layout, raw)
        fresh = self.layout.read(raw, 0, self.device)
        batch = fresh.take(slice(0, len(batch))) if fresh.divisible else fresh
        return batch, self._forward(batch) if again else output

    def _forward(self, batch: Batch) -> Tensor:
        """The outputs; an error says in which layer."""
        stack: list[str] = []
        args, kwargs = batch.call()
        given = [(t, t._version) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        with torch.no_grad():
            try:
                with watching(self.model, wanted=frozenset(), entered=stack.append):
                    result = self.model(*args, **kwargs)
            except SubjectError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise forward_error(error, batch, stack) from error
        self._writes = any(t._version != version for t, version in given)
        return _examples(primary_output(result), batch)

    def _watched(self, batch: Batch) -> list[Call]:
        calls: list[Call] = []
        args, kwargs = batch.call()
        with torch.no_grad(), watching(self.model, seen=calls):
            self.model(*args, **kwargs)
        return calls

    def _find_layers(
        self, calls: list[Call], batch: Batch, small_calls: list[Call] | None, small_n: int | None
    ) -> None:
        n = len(batch)
        small = {c.name: c for c in small_calls} if small_calls is not None else {}
        nodes = _nodes(batch, self.layout.per_graph)
        consumed: set[tuple[int, int]] = set()
        for call in calls:
            kind = _kind(call.operation)
            if call.leaf and kind in ("normalisation", "activation"):
                consumed.update(mark for mark, _ in call.inputs)
        owners = {id(p): name for name, p in self.model.named_parameters()}
        layers: dict[str, Layer] = {}
        seen: dict[tuple[int, int] | None, str] = {}
        bytes_per_row = 0.0
        largest = 0.0
        for call in calls:
            tensor = first_tensor(call.output)
            if tensor is None or tensor.dim() < 2:
                continue
            if call.leaf:
                size = tensor.numel() * tensor.element_size() / n
                bytes_per_row += size
                largest = max(largest, size)
            first = seen.get(call.mark)
            if first is not None and not (
                (call.leaf or _passes_messages(call.module))
                and call.module is not None
                and first.startswith(call.name + ".")
            ):
                continue
            if call.operation.startswith(_TRANSPARENT):
                continue
            convolves = _passes_messages(call.module)
            if not call.leaf and not convolves and call.operation not in ("MultiheadAttention",):
                continue
            twin = first_tensor(small[call.name].output) if call.name in small else None
            dimension = _batch_dimension(tensor, twin, n, small_n, nodes)
            if dimension is None:
                continue
            if first is not None:
                layers.pop(
                    first, None
                )  # a module whose answer is its functional call's: the module is the layer
            shape = tuple(s for d, s in enumerate(tensor.shape) if d != dimension)
            own = call.module.named_parameters(recurse=True) if call.module is not None else ()
            names = tuple(dict.fromkeys(owners[id(p)] for _, p in own if id(p) in owners))
            if convolves:  # its sums are its own affair; a linear map in it is read by it alone
                for inner in [x for x in layers if x.startswith(call.name + ".")]:
                    if "Aggregation" in layers[inner].operation:
                        del layers[inner]
                    else:
                        layers[inner] = replace(layers[inner], representation=False)
            layers[call.name] = Layer(
                name=call.name,
                operation=call.operation,
                kind="message-passing" if convolves else _kind(call.operation),
                shape=shape,
                batch_dimension=dimension,
                feature_dimension=_feature_dimension(call, tensor),
                parameters=names,
                representation=call.mark not in consumed and _kind(call.operation) != "embedding",
            )
            seen[call.mark] = call.name
        self.overwritten = frozenset(
            c.name
            for c in calls
            if c.mark is not None and first_tensor(c.output)._version != c.mark[1]  # type: ignore[union-attr]
        )
        """Layers whose output a later operation writes into."""
        self.layers: tuple[Layer, ...] = tuple(layers.values())
        structure = batch.structure
        self.node_layers: tuple[str, ...] = (
            () if structure is None else _node_layers(calls, structure.nodes, consumed)
        )
        """Graphs: calls with one finished row of features a node, in order, also where examples are graphs."""
        self._by_name = layers
        self.bytes_per_row = max(bytes_per_row, 1.0)
        self.largest_bytes_per_row = max(largest, 1.0)
        site = batch.site() if not self.layout.per_graph else None
        self.site_layer: str | None = None
        if site is None and batch.divisible:
            embedding = next((x for x in self.layers if x.kind == "embedding"), None)
            if embedding is not None:
                self.site_layer = embedding.name
                self._say(
                    "inputs are integers: gradients and perturbations act on "
                    f"the output of '{embedding.name}'"
                )
        self.input_shape: tuple[int, ...] | None = (
            tuple(site.shape[1:])
            if site is not None
            else self._by_name[self.site_layer].shape
            if self.site_layer
            else None
        )

    def _check_repeat(self, batch: Batch, output: Tensor) -> None:
        args, kwargs = batch.call()
        with torch.no_grad():
            began = time.perf_counter()
            again = _examples(primary_output(self.model(*args, **kwargs)), batch)
            self.seconds_per_row = (time.perf_counter() - began) / len(batch)
        differ = float((again - output).abs().max()) if again.shape == output.shape else float("inf")
        self.deterministic = differ <= _tolerance(output)
        if not self.deterministic:
            noisy = [n for n, m in self.model.named_modules() if type(m).__name__.startswith("Dropout")]
            name = f" ({', '.join(noisy[:3])})" if noisy else ""
            self._say(
                f"the same batch twice gives outputs that differ by {differ:.3g} in eval mode: "
                f"the network draws random numbers{name}; every slice is measured with its own fixed seed"
            )

    def _check_independence(
        self, batch: Batch, output: Tensor, twin: Batch | None, twin_output: Tensor | None, fixed: bool
    ) -> None:
        self.independent_rows = batch.divisible and not fixed
        if fixed:
            self._say(
                f"the network takes only batches of {len(batch)}: the loader's own batches are kept whole"
            )
        if not batch.divisible:
            self._say("examples of a graph reach one another: every pass takes the loader's batches whole")
        if twin is None or twin_output is None:
            return
        n, m = len(batch), len(twin)
        per, left = divmod(output.shape[0], n)
        if left or twin_output.shape != (per * m, *output.shape[1:]):
            self.independent_rows = False
            self._say(
                f"{n} examples give outputs {list(output.shape)}, {m} of them "
                f"{list(twin_output.shape)}: these are not answers one an example, "
                "so the loader's own batches are kept whole"
            )
            return
        if not self.deterministic:
            return
        shared = min(n, m) * per
        gap = float((output[:shared] - twin_output[:shared]).abs().max())
        if gap > max(_tolerance(output), 1e-4 * float(output.abs().max())):
            self.independent_rows = False
            self._say(
                f"outputs of an example move by {gap:.3g} when its batch is cut: "
                "examples reach one another, so the loader's own batches are kept whole"
            )

    def _check_outputs(self, output: Tensor, given: str | None) -> None:
        if given == "probs":
            self.task = replace(self.task, probabilities=True)
            return
        task = self.task
        if given == "logits" or not (task.categorical or task.kind == "multilabel"):
            return
        within = bool((output >= 0).all()) and bool((output <= 1).all()) and output.numel() >= 8
        if (
            (task.kind == "multilabel" or task.single_output(output))
            and within
            and float(output.max()) > float(output.min())
        ):
            self.task = replace(task, probabilities=True)
            self._say("MT204 all outputs lie in 0..1: read as probabilities (outputs='logits' if not)")
        if not task.categorical or output.dim() < 2:
            return
        dimension = self.task.class_dimension if output.dim() > 2 else -1
        if output.shape[dimension] < 2:
            return
        sums = output.double().sum(dimension)
        if bool((output >= 0).all()) and bool((sums - 1).abs().max() < 1e-3):
            self.task = replace(self.task, probabilities=True)
            self._say(
                "MT204 outputs are positive and sum to 1: read as probabilities (outputs='logits' if not)"
            )

    def _check_labels(self, output: Tensor, batch: Batch, offset: int) -> None:
        if not self.task.categorical or batch.targets is None:
            return
        self.task = replace(self.task, label_offset=offset)
        k = self.task.classes or int(output.shape[-1])
        labels = self.task.aligned_targets(batch.targets)
        labels = labels[labels != IGNORE]
        check_labels(self.task, batch.targets, where="batch 0")
        logits = self.task.output_logits(output)
        if logits.shape[0] != labels.shape[0] or labels.numel() < 16 or offset:
            return
        guess = logits.argmax(1)
        here = float((guess == labels).double().mean())
        for shift in (1, -1):
            there = float((guess == labels - shift).double().mean())
            if here < 2.0 / k and there > max(0.5, 3 * here):
                raise SubjectError(
                    "MT205",
                    f"accuracy on the first batch is {here:.2f}, "
                    f"and {there:.2f} after shifting labels by {shift}",
                    fix=f"label_offset={shift} (--label-offset {shift})",
                )

    def _check_bounds(self, batch: Batch, given: tuple[float, float] | None) -> None:
        site = batch.site()
        self.bounds: tuple[float, float] | None = None
        if site is None or not batch.divisible:
            if given is not None:
                raise UsageError(
                    "MT203", "bounds are given, but the inputs are no real numbers of single examples"
                )
            return
        low, high = float(site.min()), float(site.max())
        if given is not None:
            slack = 1e-4 * (given[1] - given[0])
            if low < given[0] - slack or high > given[1] + slack:
                raise SubjectError(
                    "MT203",
                    f"inputs of the first batch span {low:.3g}..{high:.3g} "
                    f"but bounds say {given[0]:g}..{given[1]:g}",
                    fix="give the range the network really sees: bounds=(low, high) (--bounds low,high)",
                )
            self.bounds = (float(given[0]), float(given[1]))
            return
        if low >= 0 and 0.5 <= high <= 1:
            self.bounds = (0.0, 1.0)
            self._say("inputs lie in 0..1: taken as their bounds (bounds=... if not)")
        elif low >= 0 and 1 < high <= 255 and bool((site == site.round()).all()):
            self.bounds = (0.0, 255.0)
            self._say("inputs are whole numbers in 0..255: taken as their bounds (bounds=... if not)")
        else:
            self._say(
                f"inputs span {low:.3g}..{high:.3g} on the first batch: "
                "no bounds assumed, attacks are not clipped"
            )

    def _modes(self) -> None:
        self._say(
            "measured in eval mode" if to_eval(self.model) else "measured in the mode it was exported in"
        )


def _answer(graph: Graph) -> Node:
    """The node of the output that the engine measures, so that both sides speak of the same numbers."""
    from microtome.interpret import Node

    stand: dict[int, Node] = {}
    values: list[Any] = []
    for output in graph.outputs:
        if isinstance(output, Node):
            shape = [1] * len(output.shape or ())
            values.append(torch.empty(shape, dtype=output.dtype, device="meta"))
            stand[id(values[-1])] = output
        else:
            values.append(output)
    return stand[id(primary_output(graph.unflatten(values)))]


def _examples(output: Tensor, batch: Batch) -> Tensor:
    return output if batch.pick is None else output[batch.pick]


def _tolerance(output: Tensor) -> float:
    """How far two evaluations of the same may lie apart."""
    return min(50 * torch.finfo(output.dtype).eps, 0.02) * float(output.abs().max().clamp_min(1e-12))


def check_finite(batch: Batch, index: int) -> None:
    """Refuse NaN or infinite inputs, naming the batch.

    Raises:
        SubjectError: MT206.
    """
    tensors = [leaf if isinstance(leaf, Tensor) else getattr(leaf, "x", None) for leaf in batch.leaves()]
    for tensor in [*tensors, batch.targets]:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.numel():
            continue
        # A sum is finite only if all terms are (overflow aside, which the exact test then settles).
        if bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all()):
            continue
        bad = (~torch.isfinite(tensor)).reshape(tensor.shape[0], -1).any(1).nonzero()[:, 0]
        own = batch.pick is None and len(tensor) == len(batch)
        first = f"example {int(batch.rows[bad[0]])}" if own else f"row {int(bad[0])}"
        raise SubjectError(
            "MT206",
            f"{'targets' if tensor is batch.targets else 'inputs'} hold NaN or infinity",
            where=f"batch {index}, first at {first}, {len(bad)} of its {len(tensor)} rows",
            fix="clean or drop these rows",
        )


def check_labels(task: Task, targets: Tensor, where: str) -> None:
    """Refuse labels outside the network's classes.

    Raises:
        SubjectError: MT205.
    """
    labels = task.aligned_targets(targets)
    labels = labels[labels != IGNORE]
    classes = task.classes or 0
    if not labels.numel():
        return
    low, high = (int(x) for x in torch.aminmax(labels))
    if low >= 0 and high < classes:
        return
    low, high = low + task.label_offset, high + task.label_offset
    fix = f"check the labels; positions without one are marked {IGNORE}"
    if high - low < classes and low > 0:
        fix = f"label_offset={low} (--label-offset {low})"
    raise SubjectError(
        "MT205", f"labels run {low}..{high} but the network has {classes} classes", where=where, fix=fix
    )


def forward_error(error: Exception, batch: Batch, entered: Sequence[str]) -> SubjectError:
    """Say which layer a forward broke in."""
    shapes = [
        f"{list(t.shape)} {str(t.dtype).replace('torch.', '')}"
        for t in batch.leaves()
        if isinstance(t, Tensor)
    ]
    last = next((f"'{name}'" for name in reversed(entered) if name), "the model itself")
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    fix = "check that the data is what this network was trained on"
    if "dtype" in text or "data type" in text or text.startswith("Input type ("):
        fix = "give the network and its inputs the same dtype"
    raised = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "  # torch's own say enough
    line = place(error)
    where = f"inputs {', '.join(shapes)}" + (f"; {line}" if line else "")
    return SubjectError("MT201", f"the forward fails in {last}: {raised}{text}", where=where, fix=fix)


def _no_network(given: Any) -> UsageError:
    what, fix = f"a {type(given).__name__}", "give the network itself"
    if isinstance(given, type):
        what, fix = f"the class {given.__name__}", f"give an object of it: {given.__name__}(...)"
    elif isinstance(given, Mapping):
        fix = "build the network and call its load_state_dict"
    elif callable(given):
        fix = "wrap it in an nn.Module whose forward calls it"
    return UsageError("MT123", f"a subject needs an nn.Module, got {what}", fix=fix)


def _move(model: nn.Module, device: str | torch.device) -> None:
    """Put the network on a device.

    Raises:
        UsageError: MT523 when there is no such device, or it cannot be used.
    """
    try:
        model.to(torch.device(device))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(
            "MT523",
            f"the network cannot be moved to the device '{device}': {told(error)}",
            fix="microtome doctor lists the devices; cpu is always there (--device cpu)",
        ) from error


def _check_values(model: nn.Module) -> None:
    """Refuse a network some of whose parameters hold no numbers yet, or that is no longer made of modules.

    Raises:
        SubjectError: MT524, MT525.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise SubjectError(
            "MT525",
            "the network is a TorchScript program, whose operations cannot be watched",
            fix="give the nn.Module it was made of, or what torch.export.export(...).module() gives",
        )
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        lazy = nn.parameter.is_lazy(tensor)
        if lazy or tensor.is_meta:
            raise SubjectError(
                "MT524",
                f"'{name}' holds no numbers yet: it is {'lazy' if lazy else 'on the meta device'}",
                fix="run one batch through the network first" if lazy else "load the weights first",
            )


def _reading(data: Iterable[Any]) -> Iterator[Any]:
    """The batches; what the user's own loader raises is told as its own.

    Raises:
        SubjectError: MT522.
    """
    index = 0
    try:
        for raw in data:
            yield raw
            index += 1
    except MicrotomeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        line = place(error)
        raise SubjectError(
            "MT522",
            f"the data raises {told(error)}",
            where=f"batch {index}" + (f"; {line}" if line else ""),
            fix="mend the loader, or leave these examples out; --debug shows the traceback",
        ) from error


def _first(data: Iterable[Any]) -> Any:
    for raw in _reading(data):
        return raw
    raise SubjectError(
        "MT209",
        "the data yields no batch",
        fix="check the loader: an empty data set or an exhausted iterator",
    )


class _Ordered:
    """A DataLoader's batches in the data set's own order, whatever its sampler would do."""

    def __init__(self, loader: Any, rows: Sequence[int] | None) -> None:
        from torch.utils.data import DataLoader

        self.dataset, self.batch_size, self.drop_last = loader.dataset, loader.batch_size, loader.drop_last
        self._loader = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            shuffle=False,
            sampler=rows,
            collate_fn=loader.collate_fn,
            drop_last=loader.drop_last,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        self.sampler = self._loader.sampler

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


def _repeatable(data: Any) -> tuple[Iterable[Any], tuple[str, ...]]:
    """Data that gives the same rows on every pass."""
    from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler

    if isinstance(data, str | os.PathLike):
        raise UsageError(
            "MT123",
            f"data is the path '{os.fspath(data)}', not batches",
            fix="microtome.loading.load_data reads .npz and .safetensors files with arrays x and y",
        )
    if isinstance(data, Tensor) or hasattr(data, "edge_index") or isinstance(data, Mapping):
        return [data], ("the data is one batch",)
    if isinstance(data, tuple) and len(data) > 1 and all(isinstance(t, np.ndarray) and t.ndim for t in data):
        data = tuple(_from_numpy(array) for array in data)
    if (
        isinstance(data, tuple) and len(data) > 1 and all(isinstance(t, Tensor) and t.dim() for t in data)
        and len({len(t) for t in data}) == 1
    ):  # fmt: skip
        return [data], ("the data is one batch",)
    if isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        size = len(data) if hasattr(data, "__len__") else 0
        if size and not hasattr(data[0], "edge_index"):
            said = f"a data set is given: read in batches of {DATASET_BATCH}"
            return DataLoader(data, batch_size=DATASET_BATCH), (said,)
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise UsageError(
            "MT123",
            f"data must be an iterable of batches, got a {type(data).__name__}",
            fix="call it" if callable(data) else "give a DataLoader or a list of batches",
        )
    if (
        isinstance(data, DataLoader)
        and type(data).__iter__ is DataLoader.__iter__
        and data.batch_size is not None
    ):
        if isinstance(data.sampler, SubsetRandomSampler):
            rows = sorted(int(i) for i in data.sampler.indices)
            return _Ordered(data, rows), ("the loader shuffles: read in the data set's own order instead",)
        if isinstance(data.sampler, RandomSampler) and not data.sampler.replacement:
            return _Ordered(data, None), ("the loader shuffles: read in the data set's own order instead",)
    if isinstance(data, Iterator):
        return list(_reading(data)), ("the data is a one-time iterator: its batches are kept in memory",)
    return data, ()


def _from_numpy(array: np.ndarray) -> Tensor:
    """As a tensor; float64 is numpy's habit and hardly ever the network's."""
    tensor = torch.as_tensor(array)
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def _kind(operation: str) -> str:
    if operation == "Conv1D":
        return "linear"  # of Hugging Face's GPT-2: a linear layer by another name
    for kind, marks in _KINDS.items():
        if any(mark in operation for mark in marks):
            return kind
    return "other"


def _nodes(batch: Batch, per_graph: bool) -> int | None:
    """Rows a layer of a graph network has when they are its examples; None for other batches."""
    if batch.divisible:
        return None
    if per_graph:
        return len(batch)
    for leaf in batch.leaves():
        if hasattr(leaf, "num_nodes"):
            return int(leaf.num_nodes)
    site = batch.site()
    return None if site is None else int(site.shape[0])


def _passes_messages(module: nn.Module | None) -> bool:
    """Whether a module is a graph convolution in PyTorch Geometric's sense."""
    return callable(getattr(module, "propagate", None)) and callable(getattr(module, "message", None))


def _node_layers(calls: Sequence[Call], nodes: int, consumed: set[tuple[int, int]]) -> tuple[str, ...]:
    """Calls with a row a node whose output is neither inside a graph convolution nor at once activated."""
    passing = tuple(c.name + "." for c in calls if _passes_messages(c.module))
    found: dict[tuple[int, int] | None, str] = {}
    for call in calls:
        tensor = first_tensor(call.output)
        if tensor is None or tensor.dim() < 2 or tensor.shape[0] != nodes or call.name.startswith(passing):
            continue
        if not (call.leaf or _passes_messages(call.module)) or call.operation.startswith(_TRANSPARENT):
            continue
        if call.mark not in consumed:
            found.setdefault(call.mark, call.name)
    return tuple(found.values())


def _batch_dimension(
    tensor: Tensor, twin: Tensor | None, n: int, small_n: int | None, nodes: int | None
) -> int | None:
    if nodes is not None:
        return 0 if tensor.shape[0] == nodes else None
    if twin is None:
        return 0 if tensor.shape[0] == n else None
    if twin.dim() != tensor.dim():
        return None
    for d in range(tensor.dim()):
        if tensor.shape[d] == n and twin.shape[d] == small_n:
            return d
    return None


def _feature_dimension(call: Call, tensor: Tensor) -> int:
    if tensor.dim() >= 4 and not call.operation.startswith(
        ("Linear", "linear", "LayerNorm", "layer_norm", "GELU")
    ):
        return 1
    if tensor.dim() == 3 and ("1d" in call.operation or call.operation in ("conv", "max_pool", "avg_pool")):
        return 1
    return -1


def _first_bad(calls: Sequence[Call]) -> str:
    for call in calls:
        tensor = first_tensor(call.output)
        if tensor is not None and call.leaf and not bool(torch.isfinite(tensor).all()):
            return f"first in layer '{call.name}'"
    return "in the output"
