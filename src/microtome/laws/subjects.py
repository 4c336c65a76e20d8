"""Tiny subjects of every kind, and broken or degenerate ones, that the laws are tried on."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.signals.capture import random_states, restore_random
from microtome.subject import Subject

ROWS = 48
BATCH = 16
CLASSES = 3


class Images(nn.Module):
    """A small CNN with what trips hooks: functional and in-place ReLU, a module used twice, batch-norm."""

    def __init__(self, classes: int = CLASSES, width: int = 4, modules: bool = False) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc, self.head = nn.Linear(4 * width, 6), nn.Linear(6, classes)
        self.modules_only = modules
        self.act1: nn.Module | None = nn.ReLU() if modules else None
        self.act2: nn.Module | None = nn.ReLU() if modules else None

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 6, 6] -> [n, classes]."""
        y = self.norm(self.stem(x))
        y = self.act1(y) if self.act1 is not None else F.relu(y)
        y = self.relu(self.mix(y))
        y = self.relu(self.mix(y))
        y = self.fc(self.drop(self.pool(y).flatten(1)))
        y = self.act2(y) if self.act2 is not None else F.relu(y)
        return self.head(y)


class Vectors(nn.Module):
    """A multi-layer perceptron."""

    def __init__(self, outputs: int = CLASSES, width: int = 8, inputs: int = 5) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = (
            nn.Linear(inputs, width),
            nn.Linear(width, width),
            nn.Linear(width, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Tokens(nn.Module):
    """An embedding, attention and a head; one answer a sequence, or one a position."""

    def __init__(self, outputs: int = CLASSES, positions: bool = False) -> None:
        super().__init__()
        self.positions = positions
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, outputs)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[n, t] -> [n, outputs] or [n, t, outputs]."""
        x = self.embed(input_ids)
        q, k, v = self.qkv(self.norm(x)).split(8, dim=2)
        x = (
            x
            + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=self.positions)[
                :, 0
            ]
        )
        return self.head(x if self.positions else x.mean(1))


class Failing(nn.Module):
    """A network that fails on the rows whose first number is beyond a bound."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """As the inner network, until it raises."""
        y = self.inner(x)
        if bool((x.flatten(1)[:, 0] > 9).any()):
            raise RuntimeError("broken on purpose")
        return y


def _seeded(build: Callable[..., Any]) -> Callable[..., Any]:
    """Build under a fixed seed and leave the random state as found."""

    def made(*args: Any, **kwargs: Any) -> Any:
        states = random_states()
        torch.manual_seed(11)
        try:
            return build(*args, **kwargs)
        finally:
            restore_random(states)

    return made


def cut(size: int, *columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Batches of ``size`` rows."""
    return [tuple(c[i : i + size] for c in columns) for i in range(0, len(columns[0]), size)]


def _fit(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], steps: int = 40
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    model.train()
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()


@cache
@_seeded
def image_rows() -> tuple[Tensor, Tensor]:
    """Noisy pictures of three bars in 0..1, [48, 1, 6, 6] float64, and labels of which some are wrong."""
    y = torch.arange(ROWS) % CLASSES
    x = 0.45 * torch.rand(ROWS, 1, 6, 6, dtype=torch.float64)
    for c in range(CLASSES):
        x[y == c, :, 2 * c : 2 * c + 2] += 0.5
    y = torch.where(torch.arange(ROWS) % 7 == 3, (y + 1) % CLASSES, y)
    return x, y


def image_model(modules: bool = False) -> nn.Module:
    """Trained a little on the rows, so that it is right on most; float64; a fresh copy each time."""
    return copy.deepcopy(_trained_images(modules))


@cache
@_seeded
def _trained_images(modules: bool) -> nn.Module:
    model = Images(modules=modules).double()
    x, y = image_rows()
    _fit(model, x, y, F.cross_entropy)
    return model


@cache
@_seeded
def _vector_rows() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 5, dtype=torch.float64)
    return x, x @ torch.randn(5, CLASSES, dtype=torch.float64)


@_seeded
def _vectors(
    outputs: int, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], **sizes: int
) -> nn.Module:
    model = Vectors(outputs, **sizes).double()
    _fit(model, _vector_rows()[0], targets, loss)
    return model


def images(
    *, batch: int = BATCH, dtype: torch.dtype = torch.float64, form: str = "pair", modules: bool = False
) -> Subject:
    """The CNN on its pictures, as pairs or dicts."""
    model = image_model(modules)
    if dtype != torch.float64:
        model = model.to(dtype)
    x, y = image_rows()
    data: list[Any] = cut(batch, x.to(dtype), y)
    if form == "dict":
        data = [{"x": a, "labels": b} for a, b in data]
    return Subject(model, data, name="images")


def vectors(*, batch: int = BATCH) -> Subject:
    """A perceptron that classifies vectors."""
    x, scores = _vector_rows()
    y = scores.argmax(1)
    return Subject(_vectors(CLASSES, y, F.cross_entropy), cut(batch, x, y), name="vectors")


def regression(*, batch: int = BATCH) -> Subject:
    """A perceptron that predicts two numbers."""
    x, scores = _vector_rows()
    y = scores[:, :2].contiguous()
    return Subject(_vectors(2, y, F.mse_loss), cut(batch, x, y), name="regression")


def multilabel(*, batch: int = BATCH) -> Subject:
    """A perceptron with three labels, several of which may hold."""
    x, scores = _vector_rows()
    y = (scores > 0).double()
    model = _vectors(CLASSES, y, F.binary_cross_entropy_with_logits)
    return Subject(model, cut(batch, x, y), task="multilabel", name="multilabel")


def unlabelled(*, batch: int = BATCH) -> Subject:
    """A perceptron and inputs alone."""
    x, scores = _vector_rows()
    model = _vectors(CLASSES, scores.argmax(1), F.cross_entropy)
    return Subject(model, [b for (b,) in cut(batch, x)], name="unlabelled")


@_seeded
def _token_rows() -> Tensor:
    return torch.randint(1, 11, (ROWS, 6))


def tokens(*, batch: int = BATCH) -> Subject:
    """Attention over token ids, dict batches."""
    ids = _token_rows()
    y = (ids.sum(1) // 12) % CLASSES
    model = _seeded(Tokens)().double().eval()
    data = [{"input_ids": a, "labels": b} for a, b in cut(batch, ids, y)]
    return Subject(model, data, name="tokens")


def language(*, batch: int = BATCH) -> Subject:
    """A next-token model; some positions have nothing to predict."""
    ids = _token_rows()
    labels = torch.where(torch.arange(6) < 5, ids, -100)
    model = _seeded(Tokens)(11, positions=True).double().eval()
    data = [{"input_ids": a, "labels": b} for a, b in cut(batch, ids, labels)]
    return Subject(model, data, name="language")


class _NodeClassifier(nn.Module):
    """Two graph convolutions."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.conv1, self.conv2 = GCNConv(4, 6), GCNConv(6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, 4] -> [nodes, classes]."""
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)


class _GraphClassifier(nn.Module):
    """Two isomorphism layers, a sum over the nodes and a head."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GINConv

        self.conv1 = GINConv(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6)))
        self.conv2 = GINConv(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, 3] -> [graphs, classes]."""
        from torch_geometric.nn import global_add_pool

        x = F.relu(self.conv2(F.relu(self.conv1(x, edge_index)), edge_index))
        return self.head(global_add_pool(x, batch))


def nodes(*, batch: int = BATCH) -> Subject:
    """A graph convolution network on a block model; the examples are its test nodes. ``batch`` cuts nothing."""
    from microtome.data.graph_generators import stochastic_blocks

    data = stochastic_blocks(90, CLASSES, degree=4, features=4, shares=(0.3, 0.2), seed=3)
    data.x = data.x.double()
    return Subject(_seeded(_NodeClassifier)().double().eval(), data, name="nodes")


def graphs(*, batch: int = BATCH) -> Subject:
    """A graph classifier on small random graphs; examples are graphs."""
    from torch_geometric.data import Batch, Data

    rng = np.random.RandomState(5)
    made = []
    for i in range(ROWS // 2):
        size = 4 + i % 4
        pairs = torch.from_numpy(rng.randint(size, size=(2, size + 2)))
        pairs = torch.cat([pairs, pairs.flip(0)], 1).unique(dim=1)
        x = torch.from_numpy(rng.randn(size, 3))
        made.append(Data(x=x, edge_index=pairs, y=torch.tensor([i % CLASSES])))
    data = [Batch.from_data_list(made[i : i + batch]) for i in range(0, len(made), batch)]
    return Subject(_seeded(_GraphClassifier)().double().eval(), data, name="graphs")


KINDS: dict[str, Callable[..., Subject]] = {
    "images": images,
    "vectors": vectors,
    "tokens": tokens,
    "regression": regression,
    "multilabel": multilabel,
    "language": language,
    "unlabelled": unlabelled,
}
"""One subject of every kind; all float64."""
if importlib.util.find_spec("torch_geometric") is not None:
    KINDS |= {"nodes": nodes, "graphs": graphs}


# ------------------------------------------------------------------------------------------ degenerate


def one_example() -> Subject:
    """A single row."""
    x, y = image_rows()
    return Subject(image_model(), [(x[:1], y[:1])], name="one example")


def two_examples() -> Subject:
    """Two rows of two classes, one a batch."""
    x, y = image_rows()
    return Subject(image_model(), cut(1, x[:2], y[:2]), name="two examples")


def one_class() -> Subject:
    """Every label is the same."""
    x, y = image_rows()
    return Subject(image_model(), cut(BATCH, x, torch.ones_like(y)), name="one class")


def equal_inputs() -> Subject:
    """Every input is the same."""
    x, y = image_rows()
    return Subject(image_model(), cut(BATCH, x[:1].expand_as(x).contiguous(), y), name="equal inputs")


def dead_layer() -> Subject:
    """A ReLU layer gives 0 for everything, so all answers are equal."""
    x, y = image_rows()
    model = image_model()
    with torch.no_grad():
        model.get_parameter("mix.weight").zero_()
        model.get_parameter("mix.bias").fill_(-1.0)
    return Subject(model, cut(BATCH, x, y), name="dead layer")


def one_unit() -> Subject:
    """Layers of a single unit, and two classes."""
    x, scores = _vector_rows()
    y = (scores[:, 0] > 0).long()
    model = _vectors(2, y, F.cross_entropy, width=1)
    return Subject(model, cut(BATCH, x, y), name="one unit")


def all_right() -> Subject:
    """Every answer is right, and certain."""
    x, _ = image_rows()
    model = image_model()
    with torch.no_grad():
        y = model(x).argmax(1)
        for name in ("head.weight", "head.bias"):
            model.get_parameter(name).mul_(1e3)
    return Subject(model, cut(BATCH, x, y), name="all right")


DEGENERATE: dict[str, Callable[[], Subject]] = {
    "one example": one_example,
    "two examples": two_examples,
    "one class": one_class,
    "equal inputs": equal_inputs,
    "dead layer": dead_layer,
    "one unit": one_unit,
    "all right": all_right,
}


def broken_subject() -> Subject:
    """A network that raises on a row of the second batch."""
    x, y = image_rows()
    x = x.clone()
    x[BATCH + 3, 0, 0, 0] = 10.0
    return Subject(Failing(image_model()), cut(BATCH, x, y), name="broken")


def with_bad_row(value: float) -> Subject:
    """An input of the second batch is not a finite number."""
    x, y = image_rows()
    x = x.clone()
    x[BATCH + 3, 0, 0, 0] = value
    return Subject(image_model(), cut(BATCH, x, y), name=f"an input is {value}")


def with_empty_batches() -> Subject:
    """Batches without rows among the others."""
    x, y = image_rows()
    parts = cut(BATCH, x, y)
    none = (x[:0], y[:0])
    return Subject(image_model(), [parts[0], none, parts[1], none, *parts[2:], none], name="images")


NAN, INF = math.nan, math.inf
