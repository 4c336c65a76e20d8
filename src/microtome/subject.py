"""The subject: a network, its data and its task, probed on one batch before anything is measured."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from microtome.batches import Batch, Layout, find_layout
from microtome.errors import SubjectError, UsageError, nearest
from microtome.signals.capture import Call, first_tensor, left_as_found, watching
from microtome.task import IGNORE, Task, given_task, infer_task, primary_output

PROBE_ROWS = 32

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
    "linear": ("Linear", "linear", "Bilinear", "Conv1D"),
}  # fmt: skip
_TRANSPARENT = ("Dropout", "Identity", "Flatten", "Unflatten")


@dataclass(frozen=True)
class Layer:
    """One call of the network that answers per example.

    Attributes:
        name: ``features.3``, ``relu#2`` (second call), ``block.relu`` (functional call inside ``block``).
        operation: class or function name.
        kind: linear, convolution, normalisation, activation, pooling, embedding, recurrent, attention, other.
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
        device: where to measure; default: where the model is.
        source: where it came from (import path, files), so that a run can be repeated.

    Raises:
        SubjectError: MT2xx, naming what does not fit and what to do.
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
        device: str | torch.device | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError("MT123", f"a subject needs an nn.Module, got a {type(model).__name__}")
        if outputs not in (None, "logits", "probs"):
            raise UsageError("MT123", f"outputs is 'logits' or 'probs', got {outputs!r}")
        self.model = model
        self.name = name or type(model).__name__
        self.source = dict(source or {})
        self.statements: tuple[str, ...] = ()
        if device is not None:
            model.to(device)
        tensors = itertools.chain(model.parameters(), model.buffers())
        self.device = next((t.device for t in tensors), torch.device("cpu"))
        self.data, said = _repeatable(data)
        self.statements += said
        raw = _first(self.data)
        with left_as_found(model):
            self._probe(raw, task, inputs, target, label_offset, outputs, bounds)
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

    @property
    def parameter_count(self) -> int:
        """Numbers in all parameters."""
        return sum(p.numel() for p in self.parameters.values())

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
            raise UsageError("MT124", f"no layer is called '{name}'", where=self.name, fix=nearest(name, self._by_name))
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
            SubjectError: MT206 for NaN or infinite inputs, MT201 for a batch that cannot be read.
        """
        start = 0
        for index, raw in enumerate(self.data):
            try:
                batch = self.layout.read(raw, start, self.device)
            except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                raise SubjectError(
                    "MT201", f"batch {index} cannot be read like the first one: {error}", where=self.layout.statement
                ) from error
            check_finite(batch, index)
            start = int(batch.rows[-1]) + 1 if len(batch) else start
            if len(batch):
                yield batch

    def _count(self) -> int:
        dataset = getattr(self.data, "dataset", None)
        if dataset is not None and hasattr(dataset, "__len__") and self.layout.kind in ("pair", "dict", "tensor"):
            loader = self.data
            if getattr(loader, "drop_last", False) and getattr(loader, "batch_size", None):
                return len(dataset) // loader.batch_size * loader.batch_size
            if getattr(loader, "batch_size", None):
                return len(dataset)
        return sum(len(self.layout.read(raw, 0, torch.device("cpu"))) for raw in self.data)

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
        self._say(self.layout.statement)
        whole = self.layout.read(raw, 0, self.device)
        if len(whole) == 0:
            raise SubjectError("MT209", "the first batch holds no examples")
        check_finite(whole, 0)
        batch = whole.take(slice(0, PROBE_ROWS)) if whole.divisible else whole
        calls, output, seconds = self._watched(batch)
        if not bool(torch.isfinite(output).all()):
            raise SubjectError(
                "MT207", "the outputs of the first batch hold NaN or infinity though its inputs are finite",
                where=_first_bad(calls), fix="look at the weights and normalisation of that layer",
            )
        self.dtype = output.dtype
        self.has_targets = whole.targets is not None
        self.seconds_per_row = seconds / len(batch)
        small, small_calls = None, None
        if batch.divisible and len(batch) > 1:
            half = (len(batch) + 1) // 2
            small = batch.take(slice(0, half))
            small_calls, small_output, _ = self._watched(small)
        found = infer_task(output, batch, task)
        self.task: Task = found if task is None else given_task(task, found)
        if self.task.kind in ("multilabel", "regression") and self.task.kind != found.kind and batch.targets is not None:
            self.task = replace(self.task, classes=self.task.classes or int(output.shape[-1]))
        self._say(self.task.statement)
        self._find_layers(calls, batch, small_calls, None if small is None else len(small))
        self._check_repeat(batch, output, small, small_output if small is not None else None)
        self._check_outputs(output, outputs)
        self._check_labels(output, batch, label_offset)
        self._check_bounds(batch, bounds)
        self._modes()

    def _watched(self, batch: Batch) -> tuple[list[Call], Tensor, float]:
        calls: list[Call] = []
        stack: list[str] = []
        with torch.no_grad():
            try:
                with watching(self.model, seen=calls, entered=stack.append):
                    began = time.perf_counter()
                    result = self.model(*batch.args, **batch.kwargs)
                    seconds = time.perf_counter() - began
            except SubjectError:
                raise
            except Exception as error:
                raise forward_error(error, batch, stack) from error
        return calls, primary_output(result), seconds

    def _find_layers(
        self, calls: list[Call], batch: Batch, small_calls: list[Call] | None, small_n: int | None
    ) -> None:
        n = len(batch)
        small = {c.name: c for c in small_calls} if small_calls is not None else {}
        consumed: set[tuple[int, int]] = set()
        for call in calls:
            kind = _kind(call.operation)
            if call.leaf and kind in ("normalisation", "activation"):
                consumed.update(call.inputs)
        graph_nodes = _graph_nodes(batch)
        owners = {id(p): name for name, p in self.model.named_parameters()}
        layers: dict[str, Layer] = {}
        seen: set[tuple[int, int] | None] = set()
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
            if call.mark in seen or call.operation.startswith(_TRANSPARENT):
                continue
            if not call.leaf and call.operation not in ("MultiheadAttention",):
                continue
            twin = first_tensor(small[call.name].output) if call.name in small else None
            dimension = _batch_dimension(tensor, twin, n, small_n, graph_nodes)
            if dimension is None:
                continue
            shape = tuple(s for d, s in enumerate(tensor.shape) if d != dimension)
            own = call.module.named_parameters(recurse=True) if call.module is not None else ()
            names = tuple(dict.fromkeys(owners[id(p)] for _, p in own if id(p) in owners))
            layers[call.name] = Layer(
                name=call.name,
                operation=call.operation,
                kind=_kind(call.operation),
                shape=shape,
                batch_dimension=dimension,
                feature_dimension=_feature_dimension(call, tensor),
                parameters=names,
                representation=call.mark not in consumed and _kind(call.operation) != "embedding",
            )
            seen.add(call.mark)
        self.layers: tuple[Layer, ...] = tuple(layers.values())
        self._by_name = layers
        self.bytes_per_row = max(bytes_per_row, 1.0)
        self.largest_bytes_per_row = max(largest, 1.0)
        site = batch.site()
        self.site_layer: str | None = None
        if site is None:
            embedding = next((x for x in self.layers if x.kind == "embedding"), None)
            if embedding is not None:
                self.site_layer = embedding.name
                self._say(f"inputs are integers: gradients and perturbations act on the output of '{embedding.name}'")
        self.input_shape: tuple[int, ...] | None = (
            tuple(site.shape[1:]) if site is not None
            else self._by_name[self.site_layer].shape if self.site_layer else None
        )

    def _check_repeat(self, batch: Batch, output: Tensor, small: Batch | None, small_output: Tensor | None) -> None:
        with torch.no_grad():
            began = time.perf_counter()
            again = primary_output(self.model(*batch.args, **batch.kwargs))
            # The first forward pays for what is set up once.
            self.seconds_per_row = min(self.seconds_per_row, (time.perf_counter() - began) / len(batch))
        scale = float(output.abs().max().clamp_min(1e-12))
        tolerance = 50 * torch.finfo(output.dtype).eps * scale
        differ = float((again - output).abs().max())
        self.deterministic = differ <= tolerance
        if not self.deterministic:
            noisy = [n for n, m in self.model.named_modules() if type(m).__name__.startswith("Dropout")]
            name = f" ({', '.join(noisy[:3])})" if noisy else ""
            self._say(
                f"the same batch twice gives outputs that differ by {differ:.3g} in eval mode: the network draws "
                f"random numbers{name}; every slice is measured with its own fixed seed"
            )
        self.independent_rows = batch.divisible
        if small is not None and small_output is not None and self.deterministic:
            m = len(small)
            per = output.shape[0] // len(batch)
            gap = float((output[: m * per] - small_output).abs().max()) if small_output.shape[1:] == output.shape[1:] else float("inf")
            if gap > max(tolerance, 1e-4 * scale):
                self.independent_rows = False
                self._say(
                    f"outputs of an example move by {gap:.3g} when its batch is cut in half: examples reach one "
                    "another, so the loader's own batches are kept whole"
                )
        if not batch.divisible:
            self._say("examples are nodes of a graph: every pass takes the whole graph")

    def _check_outputs(self, output: Tensor, given: str | None) -> None:
        if given == "probs":
            self.task = replace(self.task, probabilities=True)
            return
        if given == "logits" or not self.task.categorical or output.dim() < 2:
            return
        dimension = self.task.class_dimension if output.dim() > 2 else -1
        if output.shape[dimension] < 2:
            return
        sums = output.double().sum(dimension)
        if bool((output >= 0).all()) and bool((sums - 1).abs().max() < 1e-3):
            self.task = replace(self.task, probabilities=True)
            self._say("MT204 outputs are positive and sum to 1: read as probabilities (outputs='logits' if not)")

    def _check_labels(self, output: Tensor, batch: Batch, offset: int) -> None:
        if not self.task.categorical or batch.targets is None:
            return
        self.task = replace(self.task, label_offset=offset)
        k = self.task.classes or int(output.shape[-1])
        labels = self.task.aligned_targets(batch.targets)
        labels = labels[labels != IGNORE]
        check_labels(labels, k, offset, where="first batch")
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
                    f"accuracy on the first batch is {here:.2f}, and {there:.2f} after shifting labels by {shift}",
                    fix=f"label_offset={shift} (--label-offset {shift})",
                )

    def _check_bounds(self, batch: Batch, given: tuple[float, float] | None) -> None:
        site = batch.site()
        self.bounds: tuple[float, float] | None = None
        if site is None or not batch.divisible:
            return
        low, high = float(site.min()), float(site.max())
        if given is not None:
            slack = 1e-4 * (given[1] - given[0])
            if low < given[0] - slack or high > given[1] + slack:
                raise SubjectError(
                    "MT203",
                    f"inputs of the first batch span {low:.3g}..{high:.3g} but bounds say {given[0]:g}..{given[1]:g}",
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
            self._say(f"inputs span {low:.3g}..{high:.3g} on the first batch: no bounds assumed, attacks are not clipped")

    def _modes(self) -> None:
        self._say("measured in eval mode")


def check_finite(batch: Batch, index: int) -> None:
    """Refuse NaN or infinite inputs, naming the batch.

    Raises:
        SubjectError: MT206.
    """
    tensors = [leaf if isinstance(leaf, Tensor) else getattr(leaf, "x", None) for leaf in batch.leaves()]
    for tensor in [*tensors, batch.targets]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            # A sum is finite only if all terms are (overflow aside, which the exact test then settles).
            if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
                what = "targets" if tensor is batch.targets else "inputs"
                bad = (~torch.isfinite(tensor)).reshape(tensor.shape[0], -1).any(1).nonzero()[:, 0]
                first = int(batch.rows[bad[0]]) if batch.divisible and len(bad) else 0
                raise SubjectError(
                    "MT206",
                    f"{what} hold NaN or infinity",
                    where=f"batch {index}, first at example {first}, {len(bad)} rows of the batch",
                    fix="clean or drop these rows",
                )


def check_labels(labels: Tensor, classes: int, offset: int, where: str) -> None:
    """Refuse labels outside the network's classes.

    Raises:
        SubjectError: MT205.
    """
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        low, high = int(labels.min()) + offset, int(labels.max()) + offset
        fix = f"label_offset={low} (--label-offset {low})" if high - low < classes and low > 0 else "check the labels"
        raise SubjectError(
            "MT205", f"labels run {low}..{high} but the network has {classes} classes", where=where, fix=fix
        )


def forward_error(error: Exception, batch: Batch, entered: Sequence[str]) -> SubjectError:
    """Say which layer a forward broke in."""
    shapes = [f"{list(t.shape)} {str(t.dtype).replace('torch.', '')}" for t in batch.leaves() if isinstance(t, Tensor)]
    last = next((name for name in reversed(entered) if name), "the model itself")
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SubjectError(
        "MT201",
        f"the forward fails in '{last}': {text}",
        where=f"inputs {', '.join(shapes)}",
        fix="check that the data is what this network was trained on",
    )


def _first(data: Iterable[Any]) -> Any:
    for raw in data:
        return raw
    raise SubjectError("MT209", "the data yields no batch", fix="check the loader: an empty data set or an exhausted iterator")


class _Ordered:
    """A DataLoader's batches in the data set's own order, whatever its sampler would do."""

    def __init__(self, loader: Any) -> None:
        from torch.utils.data import DataLoader

        self.dataset, self.batch_size, self.drop_last = loader.dataset, loader.batch_size, loader.drop_last
        self._loader = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            shuffle=False,
            collate_fn=loader.collate_fn,
            drop_last=loader.drop_last,
            num_workers=loader.num_workers,
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


def _repeatable(data: Iterable[Any]) -> tuple[Iterable[Any], tuple[str, ...]]:
    """Data that gives the same rows on every pass."""
    from torch.utils.data import DataLoader, RandomSampler

    if not hasattr(data, "__iter__"):
        raise UsageError("MT123", f"data must be an iterable of batches, got a {type(data).__name__}")
    if isinstance(data, Tensor) or hasattr(data, "edge_index"):
        return [data], ("the data is one batch",)
    if isinstance(data, Mapping):
        return [data], ("the data is one batch",)
    if type(data) is DataLoader and isinstance(data.sampler, RandomSampler) and data.batch_size is not None:
        return _Ordered(data), ("the loader shuffles: read in the data set's own order instead",)
    if isinstance(data, Iterator):
        return list(data), ("the data is a one-time iterator: its batches are kept in memory",)
    return data, ()


def _kind(operation: str) -> str:
    for kind, marks in _KINDS.items():
        if any(mark in operation for mark in marks):
            return kind
    return "other"


def _graph_nodes(batch: Batch) -> int | None:
    if batch.divisible:
        return None
    for leaf in batch.leaves():
        if hasattr(leaf, "num_nodes"):
            return int(leaf.num_nodes)
    site = batch.site()
    return None if site is None else int(site.shape[0])


def _batch_dimension(
    tensor: Tensor, twin: Tensor | None, n: int, small_n: int | None, graph_nodes: int | None
) -> int | None:
    if graph_nodes is not None:
        return 0 if tensor.shape[0] == graph_nodes else None
    if twin is None:
        return 0 if tensor.shape[0] == n else None
    if twin.dim() != tensor.dim():
        return None
    for d in range(tensor.dim()):
        if tensor.shape[d] == n and twin.shape[d] == small_n:
            return d
    return None


def _feature_dimension(call: Call, tensor: Tensor) -> int:
    if tensor.dim() >= 4 and not call.operation.startswith(("Linear", "linear", "LayerNorm", "layer_norm", "GELU")):
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
