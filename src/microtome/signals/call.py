"""One call of the model on one slice: changed parameters and inputs, watched layers, values with their graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from microtome.batches import Batch
from microtome.errors import Refusal, SubjectError
from microtome.signals.capture import (
    StopForward,
    buffers_in_place,
    first_tensor,
    is_out_of_memory,
    random_states,
    replace_first,
    restore_random,
    watching,
)
from microtome.signals.expression import Signal
from microtome.subject import Subject, forward_error
from microtome.task import primary_output

NO_SITE = "inputs are integers, and no embedding layer was found to stand for them"


@contextmanager
def _in_their_places(subject: Subject, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other parameters and buffers, by name."""
    places = [subject.places[name] for name in tensors]
    before = [table[name] for table, name in places]
    try:
        for (table, name), tensor in zip(places, tensors.values(), strict=True):
            table[name] = tensor
        yield
    finally:
        for (table, name), old in zip(places, before, strict=True):
            table[name] = old


class Call:
    """One world's call of the model on one slice."""

    def __init__(
        self,
        seed: int,
        subject: Subject,
        batch: Batch,
        changed: Mapping[str, Tensor],
        x: Tensor | None,
    ) -> None:
        self.seed, self.subject, self.changed, self.x = seed, subject, changed, x
        self.batch = batch
        self.site_leaf: Tensor | None = None
        self._want_leaf = False

    def with_batch(self, batch: Batch) -> Call:
        """The same call on other rows, with their own inputs."""
        return Call(self.seed, self.subject, batch, self.changed, None)

    def parameters(self) -> dict[str, Tensor]:
        """All parameters as this world has them."""
        return {n: self.changed.get(n, p) for n, p in self.subject.parameters.items()}

    def rows_of(self, name: str, tensor: Tensor) -> Tensor:
        """A layer's output with the slice's examples along dimension 0."""
        return self.subject.rows_of(name, tensor, self.batch.pick)

    def make_site_leaf(self) -> None:
        """Make the inputs a leaf to differentiate by; an embedding's output becomes one when it is there."""
        self._want_leaf = True
        base = self.clean_inputs()
        if base is not None:
            self.site_leaf = base.detach().clone().requires_grad_()

    def require_site(self) -> Tensor:
        """That leaf.

        Raises:
            Refusal: when nothing can stand for the inputs.
        """
        if self.site_leaf is None:
            raise Refusal(NO_SITE)
        return self.site_leaf

    def clean_inputs(self) -> Tensor | None:
        """[n, ...] the real-valued inputs (all nodes of a graph); None when the embedding stands for them."""
        return self.x if self.x is not None else self.batch.site()

    def picked(self, site: Tensor) -> Tensor:
        """The examples' own inputs.

        Raises:
            Refusal: where an example is a graph, whose inputs are its nodes.
        """
        if len(site) != len(self.batch) and self.batch.pick is None:
            raise Refusal("an example is a graph: its inputs are its nodes")
        return site if self.batch.pick is None else site[self.batch.pick]

    def check(self, output: Tensor) -> None:
        """Refuse a network whose answers are no numbers; changed inputs and parameters may do that to it.

        Raises:
            SubjectError: MT207, naming the rows.
        """
        plain = self.x is None and not self.changed
        if plain and not bool(torch.isfinite(output.sum())) and not bool(torch.isfinite(output).all()):
            rows = self.batch.rows
            raise SubjectError(
                "MT207",
                "the outputs hold NaN or infinity though the inputs are finite",
                where=f"examples {int(rows[0])}..{int(rows[-1])}",
                fix="look at these inputs, and at the weights and normalisation of the network",
            )

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A network that draws random numbers draws the same for the same slice, whatever its loader does."""
        if self.subject.deterministic:
            yield
            return
        states = random_states()
        torch.manual_seed(self.seed + (int(self.batch.rows[0]) if len(self.batch) else 0))
        try:
            yield
        finally:
            restore_random(states)

    def run(
        self,
        see: Callable[[str, Any], Any],
        names: frozenset[str],
        leaves: Mapping[str, Tensor] | None = None,
        entered: Callable[[str], None] | None = None,
    ) -> Tensor:
        """Call the model; ``see`` is shown the named calls and may replace their outputs."""
        subject, batch = self.subject, self.batch
        value = self.site_leaf if self.site_leaf is not None else self.x
        embedded = subject.site_layer if batch.site() is None else None
        if value is not None and embedded is None:
            # A leaf may not be written into, which the model's first operation may do.
            batch = batch.with_site(value.clone() if value.requires_grad and subject.layout.copied else value)
        visit = see
        if embedded is not None and (value is not None or self._want_leaf):
            names = names | {embedded}

            def visit(name: str, output: Any) -> Any:
                if name != embedded:
                    return see(name, output)
                tensor = value
                if tensor is None:
                    found = subject.rows_of(name, standing(output))
                    tensor = self.site_leaf = found.detach().clone().requires_grad_()
                dimension = subject.layer(name).batch_dimension
                tensor = tensor.movedim(0, dimension) if dimension else tensor
                replaced = replace_first(output, tensor.clone() if name in subject.overwritten else tensor)
                shown = see(name, replaced)
                return replaced if shown is None else shown

        overrides = {**self.changed, **(leaves or {})}
        args, kwargs = batch.call()
        with self.drawing(), buffers_in_place(subject.buffer_tables), ExitStack() as stack:
            if names or entered is not None:
                stack.enter_context(watching(subject.model, visit, names, entered=entered))
            try:
                if overrides and subject.shares_parameters:
                    result = functional_call(subject.model, overrides, args, kwargs)
                elif overrides:
                    # The same; looking for shared tensors takes longer than a small network's forward.
                    stack.enter_context(_in_their_places(subject, overrides))
                    result = subject.model(*args, **kwargs)
                else:
                    result = subject.model(*args, **kwargs)
            except StopForward:
                raise
            except Exception as error:
                if is_out_of_memory(error) or self.changed or self.x is not None:
                    raise
                raise _located(self, error) from error
        output = primary_output(result)
        return output if self.batch.pick is None else output[self.batch.pick]

    @contextmanager
    def kernels(self, second_order: bool) -> Iterator[None]:
        """Kernels that have the derivatives: fused attention has no second, cuDNN recurrence none in eval."""
        recurrent = any(layer.kind == "recurrent" for layer in self.subject.layers)
        with ExitStack() as stack:
            if second_order:
                stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                if second_order:
                    stack.enter_context(_without_mkldnn())
            yield


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Its fused recurrence has no second derivative."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")  # about flags that are passed on unchanged
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _located(call: Call, error: Exception) -> Exception:
    """Run it again to see which layer breaks; only what breaks a plain forward is the subject's fault."""
    stack: list[str] = []
    args, kwargs = call.batch.call()
    try:
        with torch.no_grad(), watching(call.subject.model, wanted=frozenset(), entered=stack.append):
            call.subject.model(*args, **kwargs)
    except Exception as again:
        return forward_error(again, call.batch, stack)
    return error


def standing(output: Any) -> Tensor:
    """The tensor that stands for a layer's output.

    Raises:
        Refusal: when there is none.
    """
    tensor = first_tensor(output)
    if tensor is None:
        raise Refusal("a layer gave no floating-point tensor in one batch")
    return tensor


class GraphValues:
    """Values of signals with their graph attached, for differentiation."""

    def __init__(self, call: Call, result: Tensor, raw: Mapping[str, Tensor]) -> None:
        self.call, self.result, self.raw = call, result, raw
        self.known: dict[Signal, Any] = {}

    def get(self, signal: Signal) -> Any:
        """The value of a signal, found once."""
        if signal not in self.known:
            self.known[signal] = self._find(signal)
        return self.known[signal]

    def activation(self, layer: str) -> Tensor:
        """As the network gave it."""
        if layer not in self.raw:
            raise Refusal(f"layer '{layer}' is not there in every batch: the network did not call it")
        return self.raw[layer]

    def _find(self, signal: Signal) -> Any:
        call = self.call
        match signal.kind:
            case "derived":
                values = [self.get(a) if isinstance(a, Signal) else a for a in signal.arguments]
                assert signal.function is not None
                return signal.function(*values, **dict(signal.constants))
            case "outputs":
                return self.result
            case "inputs":
                site = call.site_leaf if call.site_leaf is not None else call.clean_inputs()
                if site is None:
                    raise Refusal(NO_SITE)
                return call.picked(site)
            case "targets":
                return call.batch.targets
            case "rows":
                return call.batch.rows
            case "structure":
                return call.batch.structure
            case "tokens":
                return call.batch.tokens()
            case "task":
                return call.subject.task
            case "feature_dimension":
                return call.subject.layer(signal.arguments[0]).feature_dimension
            case "activation":
                return call.rows_of(signal.arguments[0], self.activation(signal.arguments[0]))
        raise ValueError(f"cannot differentiate through {signal.text()}")
