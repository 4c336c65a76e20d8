"""Forward learning of graph networks: every layer has a loss of its own, no error goes back (Park et al. 2024).

Each layer's input is normalised and detached, so the gradient of layer k's loss with respect to any other layer is
exactly zero, and only one layer's activations are kept for a gradient at a time. Five rules:

``labels``
    Forward-forward: the label is appended to the features, right (positive) or wrong (negative). The goodness of a
    node is g = |h|^2; the loss is the cross-entropy of sigmoid(g - theta) with right against wrong.
``virtual``
    Forward-forward with one virtual node a class, joined to the labelled nodes of its class; in negative graphs a
    labelled node hangs on a wrong class. After the first layer both kinds start from the positive graph's features.
``single``
    One forward pass: virtual nodes as above, and cross-entropy of softmax_c(h_v . h_c / temperature). No negatives.
``input``
    As ``single``, and a layer also hears what the layer above said a step ago (the last one: the known labels);
    even and odd layers take turns.
``loss``
    As ``single``, and the loss sees the mean of the layer's own output and what the layers above said a step ago.

Classes are answered by the sum over layers of the class probabilities, or of the goodness under each label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.errors import UsageError
from microtome.learn.graph_training import fit_nodes

Rule = Literal["labels", "virtual", "single", "input", "loss"]


class ForwardNetwork(nn.Module):
    """Convolutions with ReLU, to be trained by :func:`fit_forward`.

    Args:
        build: (inputs, outputs) -> a convolution called as ``conv(x, edge_index)``.
        widths: [d, hidden, ..., hidden]; ``loss`` wants equal hidden widths.
        classes: how many.
        rule: see the module.
        theta: goodness at which right and wrong are even.
        temperature: of the class probabilities.
        passes: of rule ``input`` when it answers; the second half of them counts.

    Raises:
        UsageError: MT510 for an unknown rule, or hidden widths that differ where they must not.
    """

    def __init__(
        self,
        build: Callable[[int, int], nn.Module],
        widths: Sequence[int],
        classes: int,
        *,
        rule: Rule = "single",
        theta: float = 2.0,
        temperature: float = 1.0,
        passes: int = 6,
    ) -> None:
        super().__init__()
        if rule not in get_args(Rule):
            raise UsageError("MT510", f"no rule is called '{rule}'", fix=", ".join(get_args(Rule)))
        if rule == "loss" and len(set(widths[1:])) > 1:
            raise UsageError("MT510", f"rule 'loss' means over layers, but the widths are {list(widths)}")
        above = [*widths[2:], classes] if rule == "input" else [0] * (len(widths) - 1)
        first = classes if rule == "labels" else 0
        self.convs = nn.ModuleList(
            build(a + more + (0 if i else first), b)
            for i, ((a, b), more) in enumerate(zip(pairwise(widths), above, strict=True))
        )
        self.rule, self.classes, self.depth = rule, classes, len(self.convs)
        self.theta, self.temperature, self.passes = theta, temperature, passes
        self.widths = list(widths[1:])
        self.virtual: Tensor
        self.register_buffer("virtual", torch.randn(classes, widths[0]))
        self.labels = torch.empty(0, dtype=torch.long)
        self.wrong = torch.empty(0, 0, dtype=torch.long)
        self.states: list[Tensor] = []

    def attach(self, data: Any) -> None:
        """Take the labels of ``train_mask``: they are part of the graph that is answered on. Draws the wrong ones."""
        self.labels = torch.where(data.train_mask, data.y, -1)
        n, k = len(self.labels), self.classes
        shifts = torch.rand(n, k - 1).argsort(1).T + 1  # every wrong class once, in a random order
        self.wrong = torch.where(self.labels >= 0, (self.labels + shifts) % k, -1)
        self.states = []

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, classes] larger is likelier; the labels that were attached are known, the other nodes' are not.

        Raises:
            UsageError: MT510 when no labels, or those of another graph, were attached.
        """
        n = len(x)
        if len(self.labels) != n:
            raise UsageError(
                "MT510",
                f"labels of {len(self.labels)} nodes are attached, the graph has {n}",
                fix="call attach(data), or fit_forward",
            )
        if self.rule in ("labels", "virtual"):
            return torch.stack([self._goodness(x, edge_index, c) for c in range(self.classes)], 1)
        x, edges = self.extended(x, edge_index, self.labels)
        if self.rule == "single":
            return sum(self.compare(h, n).softmax(1) for h in self.run(x, edges))  # type: ignore[return-value]
        if self.rule == "loss":
            own = self.run(x, edges)
            states = [normalised(h) for h in own]
            mixed = (torch.stack([h, *states[i + 1 :]]).mean(0) for i, h in enumerate(own))
            return sum(self.compare(h, n).softmax(1) for h in mixed)  # type: ignore[return-value]
        states, total = self._start(x, edges), x.new_zeros(n, self.classes)
        for step in range(self.passes):
            for parity in (0, 1):
                for i in range(parity, self.depth, 2):
                    states[i + 1] = self.layer(i, self._heard(states, i), edges)
                    if step >= self.passes // 2:
                        total = total + self.compare(states[i + 1], n).softmax(1)
        return total

    def losses(self, data: Any) -> Iterator[tuple[int, Tensor]]:
        """(layer, its own loss), the parts of one update; the gradient of each reaches its layer alone.

        Go back from one before asking for the next, and no more than one layer's activations are ever kept. Rules
        ``input`` and ``loss`` go one step on in time with each call.
        """
        if self.rule in ("input", "loss"):
            return self._stepped(data)
        return ((i, self.layer_loss(i, data)) for i in range(self.depth))

    def layer_loss(self, i: int, data: Any) -> Tensor:
        """The loss of layer ``i`` on what the layers below give, which are not part of it."""
        known = self.labels >= 0
        if self.rule == "single":
            with torch.no_grad():
                x, edges = self.extended(data.x, data.edge_index, self.labels)
                x = [x, *self.run(x, edges, i)][-1]
            return self.class_loss(self.layer(i, x, edges))
        with torch.no_grad():
            right = self._given(data.x, data.edge_index, self.labels)
            below = [right[0], *self.run(*right, i)][-1]
        found = []
        for given in (self.labels, *self.wrong):
            x, edges = self._given(data.x, data.edge_index, given)
            if self.rule == "virtual":
                x = below  # wrong edges, but what the right graph made of the features
            elif i:
                with torch.no_grad():
                    x = self.run(x, edges, i)[-1]
            goodness = self.layer(i, x, edges)[: len(known)][known].square().sum(1)
            truth = torch.full_like(goodness, float(given is self.labels))
            found.append(F.binary_cross_entropy_with_logits(goodness - self.theta, truth))
        return found[0] + torch.stack(found[1:]).mean()

    def layer(self, i: int, x: Tensor, edges: Tensor) -> Tensor:
        """[nodes, width] of layer i; x is normalised (rule ``input``: its parts were) and cut off from what made it."""
        return F.relu(self.convs[i]((x if self.rule == "input" else normalised(x)).detach(), edges))

    def run(self, x: Tensor, edges: Tensor, depth: int | None = None) -> list[Tensor]:
        """What each of the first layers gives, bottom up."""
        found = []
        for i in range(self.depth if depth is None else depth):
            x = self.layer(i, x, edges)
            found.append(x)
        return found

    def extended(self, x: Tensor, edge_index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The graph with the classes' nodes at its end, joined both ways with the nodes of that label (-1: none)."""
        nodes = (labels >= 0).nonzero()[:, 0]
        joined = torch.stack([nodes, labels[nodes] + len(x)])
        return torch.cat([x, self.virtual]), torch.cat([edge_index, joined, joined.flip(0)], 1)

    def compare(self, h: Tensor, n: int) -> Tensor:
        """[n, classes] products of the nodes with the classes' nodes."""
        return h[:n] @ h[n:].T / self.temperature

    def class_loss(self, h: Tensor) -> Tensor:
        """Cross-entropy of :meth:`compare` with the known labels."""
        known = self.labels >= 0
        return F.cross_entropy(self.compare(h, len(known))[known], self.labels[known])

    def _given(self, x: Tensor, edge_index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.rule == "virtual":
            return self.extended(x, edge_index, labels)
        return torch.cat([x, self._one_hot(labels)], 1), edge_index

    def _one_hot(self, labels: Tensor) -> Tensor:
        """[n, classes]; a node without a label has every class alike."""
        spread = torch.full((len(labels), self.classes), 1 / self.classes, device=labels.device)
        return torch.where(labels[:, None] >= 0, F.one_hot(labels.clamp(min=0), self.classes).float(), spread)

    def _goodness(self, x: Tensor, edge_index: Tensor, label: int) -> Tensor:
        """[n] summed over the layers, if every node without a label had this one."""
        tried = torch.where(self.labels >= 0, self.labels, label)
        return sum(h[: len(x)].square().sum(1) for h in self.run(*self._given(x, edge_index, tried)))  # type: ignore

    @torch.no_grad()
    def _start(self, x: Tensor, edges: Tensor) -> list[Tensor]:
        """States from the bottom up for rule ``input``: the features, silence from above, the known labels."""
        top = torch.cat([self._one_hot(self.labels), torch.eye(self.classes, device=x.device)])
        states = [x, *(x.new_zeros(len(x), w) for w in self.widths), top]
        for i in range(self.depth):
            hushed = [*states[: i + 2], torch.zeros_like(states[i + 2])]
            states[i + 1] = self.layer(i, self._heard(hushed, i), edges)
        return states

    def _heard(self, states: list[Tensor], i: int) -> Tensor:
        return torch.cat([normalised(states[i]), normalised(states[i + 2])], 1)

    def _stepped(self, data: Any) -> Iterator[tuple[int, Tensor]]:
        x, edges = self.extended(data.x, data.edge_index, self.labels)
        if self.rule == "input":
            self.states = self.states or self._start(x, edges)
            for i in (*range(0, self.depth, 2), *range(1, self.depth, 2)):
                h = self.layer(i, self._heard(self.states, i), edges)
                self.states[i + 1] = h.detach()
                yield i, self.class_loss(h)
            return
        if not self.states:
            with torch.no_grad():
                self.states = [x, *(normalised(h) for h in self.run(x, edges))]
        before = list(self.states)
        for i in range(self.depth):
            h = self.layer(i, before[i], edges)
            self.states[i + 1] = normalised(h).detach()
            yield i, self.class_loss(torch.stack([h, *before[i + 2 :]]).mean(0))


def normalised(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    return F.normalize(x, dim=1, eps=1e-8)


def fit_forward(
    model: ForwardNetwork, data: Any, *, epochs: int = 100, rate: float = 0.01, decay: float = 0.0
) -> tuple[float, float]:
    """Train without going back through layers; the epoch with the best validation accuracy counts.

    Layer by layer, ``epochs`` each, what is below done with; all layers at once with rules ``input`` and ``loss``,
    whose layers hear one another.

    Args:
        data: x [n, d], edge_index, y [n], train_mask, val_mask, test_mask [n].
        epochs, rate, decay: of Adam.

    Returns:
        Test and validation accuracy.
    """
    model.attach(data)
    if model.rule in ("input", "loss"):
        return fit_nodes(model, data, epochs=epochs, rate=rate, decay=decay, loss=_all_layers)
    found = (0.0, 0.0)
    for i in range(len(model.convs)):
        model.depth = i + 1
        found = fit_nodes(model, data, epochs=epochs, rate=rate, decay=decay, loss=_last_layer)
    return found


def _all_layers(model: Any, data: Any) -> Tensor:
    parts = model.losses(data)
    for _ in range(model.depth - 1):
        next(parts)[1].backward()  # now, so that no second layer's activations are kept beside it
    return next(parts)[1]


def _last_layer(model: Any, data: Any) -> Tensor:
    return model.layer_loss(model.depth - 1, data)


__all__ = ["ForwardNetwork", "Rule", "fit_forward", "normalised"]
