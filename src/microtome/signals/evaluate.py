"""Computing signals: the fewest forwards and backwards per slice, values pushed on as soon as they exist.

A :class:`Program` is compiled once a round from the signals that are wanted. Running it on a slice visits
each world once: one forward (with a graph only if some gradient needs it), one backward for each distinct
scalar, whatever the number of tensors it is differentiated by. A layer's activation is handed to what is
derived from it while the forward is still running, and dropped when nobody needs it any more.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree as pytree

from microtome.batches import Batch
from microtome.errors import MicrotomeError, Refusal, SubjectError, told
from microtome.signals.call import NO_SITE, Call, GraphValues, standing
from microtome.signals.capture import (
    StopForward,
    buffers_in_place,
    is_out_of_memory,
    replace_first,
)
from microtome.signals.edge_explanations import explained
from microtome.signals.expression import BatchChange, Signal, Site, Transform, World
from microtome.signals.graphs import random_signs, target_nodes
from microtome.signals.interpretation import make_scene
from microtome.signals.program import PROFILE_FORWARDS, Board, Deliver, Failure, Program, WorldPlan, layers_of
from microtome.subject import Subject
from microtome.task import primary_output

_TOGETHER = "examples reach one another in this batch: the inputs of some cannot be changed alone"
_SECOND_ORDER = 6
"""Bytes of the graph of a gradient, in multiples of the activations."""


@dataclass(frozen=True)
class _Slope:
    """A gradient by the parameters with its graph, kept while iterative instruments multiply by its Jacobian."""

    tensors: list[Tensor]
    value: Tensor | None
    """Flat: the parts of the gradient that depend on the parameters; None when there are none."""
    used: list[bool] | None
    """Which parameters these parts belong to; None for all."""
    fresh: bool = False
    """Whether the round that goes on has used it."""


def _limit(error: Exception) -> Exception:
    """What torch cannot do for this network is a refusal, and no fault."""
    if isinstance(error, NotImplementedError) and "the derivative for" in str(error):
        return Refusal(f"torch has no second derivatives here: {told(error).partition(': ')[2]}")
    if type(error).__name__ == "CheckpointError":
        return Refusal(
            "the network computes parts of itself again in the backward pass (torch.utils.checkpoint), "
            "which it cannot do at other parameters: switch that off in eval mode"
        )
    return error


class Evaluator:
    """Runs programs on slices of one subject's data.

    Args:
        subject: what is examined.
        seed: for networks that draw random numbers in eval mode.
        rows_limit: most rows in one forward (the memory budget's word); copies of :func:`across` obey it too.
        cache_bytes: how much of changed parameters to keep between slices.
    """

    def __init__(
        self, subject: Subject, *, seed: int = 0, rows_limit: int = 256, cache_bytes: int = 1 << 28
    ) -> None:
        self.subject, self.seed, self.rows_limit, self.cache_bytes = subject, seed, rows_limit, cache_bytes
        self.trace: list[tuple[str, int, int]] | None = None
        """When a list: (kind of work, rows, vectors) of every call of the model, for benchmarks."""
        self._programs: dict[tuple[Signal, World], tuple[Program, Signal]] = {}
        self._answers: dict[tuple[Signal, World, int] | None, Tensor] = {}
        self._changed: OrderedDict[tuple[Any, ...], Mapping[str, Tensor]] = OrderedDict()
        self._changed_bytes = 0
        self._slopes: dict[Any, _Slope] = {}

    def run(self, program: Program, batch: Batch, deliver: Deliver) -> None:
        """Compute a program's signals on one slice.

        Raises:
            SubjectError: when the plain forward fails; failures in other worlds are delivered as Failure.
        """
        self.run_together(program, [(batch, deliver)])

    def run_together(self, program: Program, slices: Sequence[tuple[Batch, Deliver]]) -> None:
        """Compute a program's signals on several slices, changing the parameters of each world only once.

        Raises:
            SubjectError: as :meth:`run` does.
        """
        own, changed = program.by_parameters
        try:
            boards = []
            for batch, deliver in slices:
                boards.append(self._board(program, batch, deliver))
                for world in own:
                    self._enter(world, program.worlds[world], batch, boards[-1], None)
                self._answers.clear()
            for world in changed:
                for (batch, _), board in zip(slices, boards, strict=True):
                    self._enter(world, program.worlds[world], batch, board, None)
        finally:
            self._answers.clear()

    def _run(self, program: Program, batch: Batch, deliver: Deliver, site: Tensor | None) -> None:
        board = self._board(program, batch, deliver)
        for world, plan in program.worlds.items():
            self._enter(world, plan, batch, board, site)

    def _board(self, program: Program, batch: Batch, deliver: Deliver) -> Board:
        board = Board(program, deliver)
        for signal in program.slice_sources:
            board.put(signal, _of_the_data(signal, batch))
        return board

    def _enter(self, world: World, plan: WorldPlan, batch: Batch, board: Board, site: Tensor | None) -> None:
        """Fulfil one world's plan on one slice; what fails there fails alone."""
        pending = _Pending(plan, board)
        try:
            self._world(world, plan, batch, pending, site)
        except Exception as error:
            if is_out_of_memory(error) or (isinstance(error, SubjectError) and world.subject is None):
                raise
            pending.fail(error)
        if pending.owed:
            names = sorted({s.text() for s in pending.owed})
            pending.fail(Refusal(f"{names[0]} is not there in every batch: the network did not call it"))

    def note(self, kind: str, batch: Batch, vectors: int = 0) -> None:
        """Write one piece of work into the trace."""
        if self.trace is not None:
            self.trace.append((kind, len(batch), vectors))

    # -- one world ---------------------------------------------------------------------------------

    def _world(
        self, world: World, plan: WorldPlan, batch: Batch, board: _Pending, site: Tensor | None
    ) -> None:
        subject = world.subject or self.subject
        for signal in plan.plain:
            if signal.kind == "task":
                board.put(signal, subject.task)
            elif signal.kind == "feature_dimension":
                board.put(signal, subject.layer(signal.arguments[0]).feature_dimension)
        changed = self._parameters(subject, world)
        x = site
        if site is None:
            for change in world.inputs:
                if isinstance(change, BatchChange):
                    batch = change.change(batch)
        transforms = [t for t in world.inputs if isinstance(t, Transform)]
        if x is None and transforms:
            x = self._movable_site(subject, batch, changed)
            look = Site(batch.rows, batch.targets, subject.bounds, self._ask(world, batch))
            for transform in transforms:
                x = transform.apply(x, look).detach()
        attempt = partial(self._attempt, board)
        call = partial(Call, self.seed, subject, batch, changed, x)
        if plan.gradients:
            attempt(itertools.chain(*plan.gradients.values()), self._with_graph, call(), plan, board)
        if any(s in board.owed for s in plan.plain):
            # No gradient is asked for, or the model works only without a graph.
            self._without_graph(call(), plan, board)
        for of, wanted in plan.curvature.items():
            attempt(wanted, self._curvature, call(), of, wanted, board)
        for signal in plan.examples:
            attempt([signal], self._example_gradients, call(), signal, board)
        for signal in plan.across:
            attempt([signal], self._across, world, call(), signal, board)
        for signal in plan.interpreted:
            attempt([signal], self._interpreted, call(), signal, board)
        for signal in plan.sensitivity:
            attempt([signal], self._sensitivity, call(), signal, board)
        for signal in plan.explanations:
            attempt([signal], self._explanations, call(), signal, board)
        if plan.profile is not None:
            attempt([plan.profile], self._profile, call(), plan.profile, board)

    def _attempt(
        self, board: _Pending, signals: Iterable[Signal], work: Callable[..., None], *given: Any
    ) -> None:
        """Do what gives these signals; if it fails, they fail and nothing else does."""
        try:
            work(*given)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, SubjectError):
                raise
            for signal in signals:
                if signal in board.owed:
                    board.put(signal, Failure(_limit(error)))

    def _without_graph(self, call: Call, plan: WorldPlan, board: _Pending) -> None:
        wanted = {s.arguments[0]: s for s in plan.plain if s.kind == "activation" and s in board.owed}
        inputs = next((s for s in plan.plain if s.kind == "inputs" and s in board.owed), None)
        outputs = next((s for s in plan.plain if s.kind == "outputs" and s in board.owed), None)
        nodes = {s.arguments[0]: s for s in plan.plain if s.kind == "node_activation" and s in board.owed}
        subject = call.subject
        if inputs is not None:
            site = call.clean_inputs()
            if site is not None:
                board.put(inputs, call.picked(site))
            elif subject.site_layer is None:
                board.put(inputs, Failure(Refusal(NO_SITE)))

        def see(name: str, output: Any) -> Any:
            if name in nodes:
                board.put(nodes[name], standing(output))
            if name not in layers:
                return None
            tensor = call.rows_of(name, standing(output))
            if inputs is not None and inputs in board.owed and name == subject.site_layer:
                board.put(inputs, tensor)
            if name in wanted:
                board.put(wanted[name], tensor)
            # Who still waits for it must not see a later operation write into it.
            return replace_first(output, standing(output).clone()) if name in subject.overwritten else None

        names = set(wanted)
        if inputs is not None and inputs in board.owed and subject.site_layer is not None:
            names.add(subject.site_layer)
        layers, names = names, names | set(nodes)
        if not names and outputs is None:
            return
        self.note("forward", call.batch)
        with torch.no_grad():
            result = call.run(see, frozenset(names))
        call.check(result)
        if outputs is not None:
            board.put(outputs, result)

    def _with_graph(self, call: Call, plan: WorldPlan, board: _Pending) -> None:
        subject = call.subject
        wrts = {s.arguments[1] for wanted in plan.gradients.values() for s in wanted}
        streamed = {s.arguments[0]: s for s in plan.plain if s.kind == "activation"}
        graph_layers = wrts - {"inputs", "parameters"}
        for of in plan.gradients:
            graph_layers |= layers_of(of)
        raw: dict[str, Tensor] = {}
        leaves = {}
        if "parameters" in wrts:
            leaves = {n: p.detach().requires_grad_() for n, p in call.parameters().items()}
        if "inputs" in wrts:
            call.make_site_leaf()

        def see(name: str, output: Any) -> Any:
            tensor = standing(output)
            if name in graph_layers:
                # Where nothing upstream asks for a gradient the graph begins here.
                raw[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_(name in wrts)
            if name in streamed:
                board.put(streamed[name], call.rows_of(name, tensor.detach()))
            # Who still waits for it must not see a later operation write into it.
            if name in graph_layers or name in subject.overwritten:
                return replace_first(output, raw.get(name, tensor).clone())
            return None

        kind = "parameters" if "parameters" in wrts else "inputs" if "inputs" in wrts else "layers"
        self.note(kind, call.batch, len(plan.gradients))
        with torch.enable_grad(), call.kernels(second_order=False):
            # While a run goes on no parameter asks for a gradient (see left_as_found).
            result = call.run(see, frozenset(set(streamed) | graph_layers), leaves)
            call.check(result)
            site = call.site_leaf
            for signal in plan.plain:
                if signal.kind == "outputs":
                    board.put(signal, result)
                elif signal.kind == "inputs":
                    shown = site if site is not None else call.clean_inputs()
                    if shown is not None:
                        board.put(signal, call.picked(shown))
            values = GraphValues(call, result, raw)
            remaining = len(plan.gradients)
            for of, wanted in plan.gradients.items():
                remaining -= 1
                self._attempt(
                    board, wanted, self._backward, call, values, of, wanted, raw, leaves, remaining > 0, board
                )

    def _backward(
        self,
        call: Call,
        values: GraphValues,
        of: Signal,
        wanted: list[Signal],
        raw: Mapping[str, Tensor],
        leaves: Mapping[str, Tensor],
        keep: bool,
        board: _Pending,
    ) -> None:
        """One scalar's gradients by everything it is differentiated by."""
        total = values.get(of).sum()
        tensors: list[Tensor] = []
        for signal in wanted:
            wrt = signal.arguments[1]
            if wrt == "parameters":
                tensors += leaves.values()
            else:
                tensors.append(call.require_site() if wrt == "inputs" else values.activation(wrt))
        if not total.requires_grad:
            raise Refusal("nothing differentiable leads to the output: the network cuts its own graph")
        found = list(torch.autograd.grad(total, tensors, retain_graph=keep, allow_unused=True))
        for signal in wanted:
            wrt = signal.arguments[1]
            if wrt == "parameters":
                part, found = found[: len(leaves)], found[len(leaves) :]
                filled = [
                    torch.zeros_like(t) if g is None else g
                    for g, t in zip(part, leaves.values(), strict=True)
                ]
                board.put(signal, torch.cat([g.reshape(-1) for g in filled]))
                continue
            value, found = found[0], found[1:]
            if wrt == "inputs":
                cut = Refusal("no gradient reaches the inputs: the network cuts its own graph")
                board.put(signal, Failure(cut) if value is None else call.picked(value))
            else:
                board.put(signal, call.rows_of(wrt, torch.zeros_like(raw[wrt]) if value is None else value))

    def _curvature(self, call: Call, of: Signal, wanted: list[Signal], board: _Pending) -> None:
        plain = call.x is None and not call.changed and call.subject.deterministic
        small = _SECOND_ORDER * call.subject.bytes_per_row * len(call.batch) <= self.cache_bytes
        key = (of, id(call.subject), call.batch.rows.numpy().tobytes()) if plain and small else None
        with torch.enable_grad(), call.kernels(second_order=True):
            held = self._slopes.get(key)
            vector_count = sum(s.arguments[1].value.shape[0] for s in wanted)
            self.note("curvature" if held is None else "products", call.batch, vector_count)
            slope = held or self._slope_with_graph(call, of)
            tensors = slope.tensors
            last = wanted[-1]
            for signal in wanted:
                vectors: Tensor = signal.arguments[1].value
                products = torch.zeros_like(vectors)
                for i, vector in enumerate(vectors):
                    if slope.value is None:  # linear in the parameters
                        continue
                    if slope.used is not None:
                        pieces = call.subject.split_parameters(vector).values()
                        vector = torch.cat(
                            [p.reshape(-1) for p, used in zip(pieces, slope.used, strict=True) if used]
                        )
                    final = key is None and signal is last and i == len(vectors) - 1
                    # As a scalar, for autograd.grad's own grad_outputs would import sympy to compare shapes.
                    along = torch.dot(slope.value, vector.to(slope.value.dtype))
                    second = torch.autograd.grad(along, tensors, retain_graph=not final, allow_unused=True)
                    rows = call.subject.split_parameters(products[i]).values()
                    # Filled in place: for millions of parameters every copy counts.
                    pairs = [
                        (row, found) for row, found in zip(rows, second, strict=True) if found is not None
                    ]
                    torch._foreach_copy_([row for row, _ in pairs], [found for _, found in pairs])
                    del second, pairs
                board.put(signal, products)
        if key is not None:
            self._slopes[key] = replace(slope, fresh=True)

    def _slope_with_graph(self, call: Call, of: Signal) -> _Slope:
        """The gradient by the parameters, ready to be differentiated again."""
        leaves = {n: p.detach().requires_grad_() for n, p in call.parameters().items()}
        raw: dict[str, Tensor] = {}

        def see(name: str, output: Any) -> Any:
            raw[name] = standing(output)
            return replace_first(output, raw[name].clone())

        result = call.run(see, frozenset(layers_of(of)), leaves)
        total = GraphValues(call, result, raw).get(of).sum()
        if not total.requires_grad:
            raise Refusal("nothing differentiable leads to the output: the network cuts its own graph")
        tensors = list(leaves.values())
        found = torch.autograd.grad(total, tensors, create_graph=True, allow_unused=True)
        used = [g is not None and g.requires_grad for g in found]
        parts = [g.reshape(-1) for g in found if g is not None and g.requires_grad]
        return _Slope(tensors, torch.cat(parts) if parts else None, None if all(used) else used)

    def _example_gradients(self, call: Call, signal: Signal, board: _Pending) -> None:
        of = signal.arguments[0]
        if not call.batch.divisible:
            raise Refusal("examples that reach one another have no gradients of their own")
        if call.x is not None and call.batch.site() is None:
            raise Refusal("gradients of single examples are not taken on changed embeddings")
        names = list(call.parameters())
        parameters = {n: p.detach() for n, p in call.parameters().items()}
        count = len(call.batch)
        free = max(self.cache_bytes // (4 * max(call.subject.parameter_count, 1)), 1)
        step = int(min(count, self.rows_limit, free))
        batch = call.batch if call.x is None else call.batch.with_site(call.x)
        leaves = batch.leaves()
        on = [i for i, b in enumerate(batch.batched) if b and isinstance(leaves[i], Tensor)]

        def one(values: dict[str, Tensor], row: tuple[Tensor, ...], target: Tensor | None) -> Tensor:
            single = list(leaves)
            for i, value in zip(on, row, strict=True):
                single[i] = value.unsqueeze(0)
            alone = batch.with_leaves(
                single, targets=None if target is None else target.unsqueeze(0), rows=batch.rows[:1]
            )
            args, kwargs = alone.call()
            result = primary_output(
                functional_call(call.subject.model, {**call.changed, **values}, args, kwargs)
            )
            return GraphValues(call.with_batch(alone), result, {}).get(of).sum()

        out: list[Tensor] = []
        self.note("examples", call.batch)
        with call.drawing(), buffers_in_place(call.subject.buffer_tables), call.kernels(second_order=True):
            for start in range(0, count, step):
                piece = slice(start, start + step)
                row = tuple(leaves[i][piece] for i in on)
                target = None if batch.targets is None else batch.targets[piece]
                dims = (None, 0, None if target is None else 0)
                try:
                    gradients = vmap(grad(one), in_dims=dims, randomness="different")(parameters, row, target)
                    norms = [gradients[n].flatten(1).square().sum(1) for n in names]
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        raise
                    # Operations without a batching rule (fused recurrent kernels): one example after another.
                    norms = self._examples_one_by_one(one, parameters, row, target, names)
                out.append(torch.stack(norms, dim=1))
        board.put(signal, torch.cat(out))

    def _examples_one_by_one(
        self,
        one: Callable[..., Tensor],
        parameters: dict[str, Tensor],
        row: tuple[Tensor, ...],
        target: Tensor | None,
        names: list[str],
    ) -> list[Tensor]:
        leaves = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        collected = []
        for i in range(row[0].shape[0]):
            with torch.enable_grad():
                value = one(leaves, tuple(r[i] for r in row), None if target is None else target[i])
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            collected.append(torch.stack([(p.sum() * 0 if g is None else g.square().sum()).detach()
                                          for g, p in zip(found, leaves.values(), strict=True)]))  # fmt: skip
        table = torch.stack(collected)
        return [table[:, j] for j in range(len(names))]

    def _across(self, world: World, call: Call, signal: Signal, board: _Pending) -> None:
        inner, variation, weights = signal.arguments
        subject, batch = call.subject, call.batch
        base = call.x if call.x is not None else self._movable_site(subject, batch, call.changed)
        n = len(batch)
        ask = self._ask(world, batch)
        # Copies of different kinds must not meet in a batch whose rows reach one another.
        step = max(self.rows_limit // n, 1) if batch.divisible else 1
        total: Tensor | None = None
        parts: list[Tensor] = []
        for start in range(0, variation.count, step):
            stop = min(start + step, variation.count)
            copies = variation.copies(base, batch.rows, start, stop)
            keep = torch.arange(n).repeat_interleave(stop - start)
            value = ask(inner, copies.reshape(-1, *copies.shape[2:]), keep)
            if value.shape[0] != n * (stop - start):
                raise Refusal(f"{inner.text()} gives several values an example; variations need one")
            value = value.reshape(n, stop - start, *value.shape[1:])
            if weights is None:
                parts.append(value)
            else:
                value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
                factor = torch.tensor(weights[start:stop], dtype=value.dtype, device=value.device)
                part = torch.einsum("nc...,c->n...", value, factor)
                total = part if total is None else total + part
        board.put(signal, torch.cat(parts, dim=1) if total is None else total)

    def _interpreted(self, call: Call, signal: Signal, board: _Pending) -> None:
        of, interpretation = signal.arguments
        subject, batch, n = call.subject, call.batch, len(call.batch)
        affordable = 2 * self.cache_bytes / (interpretation.memory * subject.bytes_per_row)
        step = max(min(int(affordable), n), 1) if batch.divisible else max(n, 1)
        parts = []
        for start in range(0, n, step):
            piece = slice(start, start + step)
            part = call if step >= n else call.with_batch(batch.take(piece))
            x = None if call.x is None else call.x[piece] if step < n else call.x

            def slope(outputs: Tensor, part: Call = part) -> Tensor:
                leaf = outputs.detach().requires_grad_()
                with torch.enable_grad():
                    shown = leaf if part.batch.pick is None else leaf[part.batch.pick]
                    total = GraphValues(part, shown, {}).get(of).sum()
                    return torch.autograd.grad(total, leaf)[0]

            self.note("interpreted", part.batch)
            try:
                with torch.no_grad():
                    parts.append(interpretation.read(make_scene(subject, part.batch, x, call.changed, slope)))
            except MicrotomeError as error:
                # What the program cannot be asked is this signal's failure, not the subject's.
                raise Refusal(str(error)) from error
        first, tree = pytree.tree_flatten(parts[0])
        columns = [first, *(pytree.tree_leaves(p) for p in parts[1:])]
        joined = [c[0] if len(c) == 1 else torch.cat(c) for c in map(list, zip(*columns, strict=True))]
        board.put(signal, pytree.tree_unflatten(joined, tree))

    def _sensitivity(self, call: Call, signal: Signal, board: _Pending) -> None:
        """How far each example's node in a layer moves with the features of every node; see signals.graphs."""
        layer, draws, seed = signal.arguments
        structure = call.batch.structure
        if structure is None:
            raise Refusal("the data is no graph")
        call.make_site_leaf()
        site = call.require_site()
        raw: dict[str, Tensor] = {}

        def see(name: str, output: Any) -> None:
            raw[name] = standing(output)

        self.note("inputs", call.batch, draws)
        with torch.enable_grad():
            call.run(see, frozenset({layer}))
            if layer not in raw:
                raise Refusal(f"the network did not call layer '{layer}'")
            value, targets = raw[layer].flatten(1), target_nodes(structure, call.batch.rows, seed)
            found = torch.zeros(len(targets), structure.nodes, dtype=torch.float64, device=site.device)
            # Graphs do not reach one another, so one backward serves a node of each.
            every = torch.arange(len(targets))
            rounds = (every,) if structure.per_graph else every.split(1)
            for draw in range(draws):
                signs = random_signs(value.shape[1], seed, draw).to(value)
                for one in rounds:
                    slope = torch.autograd.grad(
                        (value[targets[one]] @ signs).sum(), site, retain_graph=True, allow_unused=True
                    )[0]
                    if slope is None:
                        raise Refusal("no gradient reaches the inputs: the network cuts its own graph")
                    size = slope.double().flatten(1).square().sum(1) / draws
                    own = structure.graph == structure.graph[targets[one]][:, None]
                    found[one] += torch.where(own, size, torch.zeros_like(size))
        board.put(signal, found)

    def _explanations(self, call: Call, signal: Signal, board: _Pending) -> None:
        self.note("inputs", call.batch)
        site = call.clean_inputs()
        board.put(signal, explained(call.subject, call.batch, call.changed, site, signal.arguments[0]))

    def _profile(self, call: Call, signal: Signal, board: _Pending) -> None:
        from microtome.signals.operations import OperationCounter

        layers = {layer.name: i for i, layer in enumerate(call.subject.layers)}
        whole = len(layers)
        began: dict[str, float] = {}
        seen = torch.zeros(whole + 1, dtype=torch.float64)
        counter = OperationCounter()

        def clock() -> float:
            return float(counter.total) if counting else _now(call.subject.device)

        def enter(name: str) -> None:
            began[name] = clock()

        def see(name: str, output: Any) -> None:
            if name in began:
                seen[layers[name]] = clock() - began[name]

        for _ in range(PROFILE_FORWARDS):
            self.note("forward", call.batch)
        with torch.no_grad():
            counting = True
            # Fused attention has no count on every device; taken apart it is matrix products.
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
                call.run(see, frozenset(layers), entered=enter)
            seen[whole] = clock()
            table = [seen / len(call.batch)]
            counting = False
            times = []
            for _ in range((PROFILE_FORWARDS - 1) // 2):
                seen = torch.zeros(whole + 1, dtype=torch.float64)
                call.run(see, frozenset(layers), entered=enter)
                start = clock()
                call.run(see, frozenset())  # unwatched: watching costs time of its own
                seen[whole] = clock() - start
                times.append(seen)
            table.append(torch.stack(times[1:]).median(0).values)
        board.put(signal, torch.stack(table, dim=1))

    # -- other inputs, other parameters --------------------------------------------------------------

    def _ask(self, world: World, batch: Batch) -> Callable[..., Tensor]:
        target = world.clean

        def ask(signal: Signal, site: Tensor, keep: Tensor | None = None) -> Tensor:
            key = (signal, target)
            # Several transforms of one slice start from the same answer on the same inputs.
            memory = (signal, target, id(site)) if keep is None and site is batch.site() else None
            if memory in self._answers:
                return self._answers[memory]
            if key not in self._programs:
                moved = signal._moved(lambda _: target)
                self._programs[key] = (Program([moved]), moved)
            program, moved = self._programs[key]
            if not batch.divisible and len(site) != len(batch):
                raise Refusal(_TOGETHER)
            part = batch if keep is None else batch.take(keep)
            limit = self.rows_limit if part.divisible else len(part)
            pieces = []
            for start in range(0, len(part), limit):
                piece = slice(start, start + limit)
                got: dict[Signal, Any] = {}
                whole = len(part) <= limit
                self._run(
                    program,
                    part if whole else part.take(piece),
                    got.__setitem__,
                    site if whole else site[piece],
                )
                value = got[moved]
                if isinstance(value, Failure):
                    raise value.error
                pieces.append(value)
            answer = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            if memory is not None:
                self._answers[memory] = answer
            return answer

        return ask

    def _movable_site(self, subject: Subject, batch: Batch, changed: Mapping[str, Tensor]) -> Tensor:
        """[n, ...] what is changed when inputs are: the inputs, or the embedding's output."""
        site = batch.site()
        if batch.pick is not None or (site is not None and len(site) != len(batch)):
            raise Refusal(_TOGETHER)
        if site is not None:
            return site
        if subject.site_layer is None:
            raise Refusal(NO_SITE)
        found: list[Tensor] = []

        def see(name: str, output: Any) -> None:
            found.append(subject.rows_of(name, standing(output)))
            raise StopForward

        with torch.no_grad(), contextlib.suppress(StopForward):
            Call(self.seed, subject, batch, changed, None).run(see, frozenset({subject.site_layer}))
        return found[0]

    def _parameters(self, subject: Subject, world: World) -> Mapping[str, Tensor]:
        if not world.parameters:
            return {}
        key = (id(subject), world.parameters)
        cached = self._changed.get(key)
        if cached is not None:
            self._changed.move_to_end(key)
            return cached
        changed: dict[str, Tensor] = {}
        for change in world.parameters:
            with torch.no_grad():
                changed.update(change.change(subject, {**subject.parameters, **subject.buffers, **changed}))
        self._changed[key] = changed
        self._changed_bytes += _bytes(changed)
        while len(self._changed) > 1 and self._changed_bytes > self.cache_bytes:
            self._changed_bytes -= _bytes(self._changed.popitem(last=False)[1])
        return changed

    def forget(self) -> None:
        """Drop what was kept for the last round."""
        self._changed.clear()
        self._changed_bytes = 0
        self._slopes = {
            key: replace(slope, fresh=False) for key, slope in self._slopes.items() if slope.fresh
        }
        self._programs.clear()


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())


def _of_the_data(signal: Signal, batch: Batch) -> Any:
    if signal.kind == "structure":
        return Failure(Refusal("the data is no graph")) if batch.structure is None else batch.structure
    if signal.kind == "tokens":
        ids = batch.tokens()
        return Failure(Refusal("the inputs are no token ids")) if ids is None else ids
    return batch.rows if signal.kind == "rows" else batch.targets


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Pending:
    """A world's plan while it is being fulfilled: on failure, what is still owed fails."""

    def __init__(self, plan: WorldPlan, board: Board) -> None:
        self.board = board
        self.owed: dict[Signal, None] = dict.fromkeys(plan.plain)
        for group in (
            *plan.gradients.values(),
            *plan.curvature.values(),
            plan.examples,
            plan.across,
            plan.interpreted,
            plan.sensitivity,
            plan.explanations,
        ):
            self.owed.update(dict.fromkeys(group))
        if plan.profile is not None:
            self.owed[plan.profile] = None

    def put(self, signal: Signal, value: Any) -> bool:
        self.owed.pop(signal, None)
        return self.board.put(signal, value)

    def fail(self, error: BaseException) -> None:
        for signal in list(self.owed):
            self.put(signal, Failure(error))


__all__ = ["Evaluator", "Failure", "Program", "WorldPlan", "is_out_of_memory"]
