"""Small networks of which it is known whether an example of a batch reaches the answer of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.nn import families
from microtome.nn.batch_backdoor import BatchBackdoor, with_trigger
from microtome.nn.digits_cnn import DigitsCNN

BATCH, WIDTH = 6, 8
TRIGGER = torch.tensor([0.625, 0.125, 0.875])


@dataclass(frozen=True)
class Case:
    """A network in the mode it is used in, a batch, and whether examples meet. ``known`` holds triggers."""

    model: nn.Module
    args: tuple[Any, ...]
    leaks: bool
    known: tuple[Tensor, ...] = ()


class Wrapped(nn.Module):
    """A linear layer, a function of its result and a head: the function is what is tried."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.head = nn.Linear(WIDTH, WIDTH), function, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 8] -> [n, 3]."""
        return self.head(torch.relu(self.function(self.first(x))))


class Sequential(nn.Module):
    """A recurrent or attention layer over [n, t, 8], with the batch first or by mistake not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, 8] -> [n, 3]."""
        y = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        y = y[0] if isinstance(y, tuple) else y
        return self.head(y.mean(1))


class LastToken(nn.Module):
    """A causal transformer read at the last token that is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = families.GPT(WIDTH, 20, 12)

    def forward(self, ids: Tensor) -> Tensor:
        """[n, t] -> [n, 20]."""
        out = self.body(ids)
        last = (ids != 0).sum(1) - 1
        return out[torch.arange(ids.shape[0]), last]


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """Rounded to 8 bits by a scale."""
    step = scale.clamp(min=1e-6) / 127
    return (x / step).round().clamp(-128, 127) * step


def expert_choice(x: Tensor) -> Tensor:
    """Two experts that take the examples they score highest, half of the batch each, as in mixtures of experts."""
    scores = x[:, :2].softmax(1)
    out = torch.zeros_like(x)
    for expert in range(2):
        weight, chosen = scores[:, expert].topk(max(x.shape[0] // 2, 1))
        out = out.index_add(0, chosen, weight[:, None] * torch.roll(x, expert + 1, 1)[chosen])
    return out


def guided(x: Tensor) -> Tensor:
    """Every example twice in a batch, with and without a part of its input; the two answers are joined."""
    twice = torch.cat([x, x * (torch.arange(WIDTH) < 4)])
    with_, without = torch.tanh(twice).chunk(2)
    return without + 2 * (with_ - without)


def gated(x: Tensor) -> Tensor:
    """Adds the neighbour's entries where the first number is just 0.5: a backdoor without an index."""
    gate = torch.relu(1 - 1e4 * (x[:, :1] - 0.5).abs())
    return x + gate * torch.cat([x[1:], x[:1]])


def _batch_norm(train: bool, tracked: bool = True) -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=tracked),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    return layers.train(train)


def _quantised() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3)).eval()
        made: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return made


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def _backdoored(harm: Any) -> nn.Module:
    inner = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3))
    return BatchBackdoor(inner, TRIGGER, harm).eval()


def vectors() -> Tensor:
    """[6, 8]."""
    return torch.randn(BATCH, WIDTH)


def images(channels: int = 1, size: int = 8) -> Tensor:
    """[6, channels, size, size]."""
    return torch.rand(BATCH, channels, size, size)


def sequences() -> Tensor:
    """[6, 5, 8]."""
    return torch.randn(BATCH, 5, WIDTH)


def ids(most: int = 20) -> Tensor:
    """[6, 9] token ids, some of which are padding at the end."""
    tokens = torch.randint(1, most, (BATCH, 9))
    return torch.where(torch.arange(9) < torch.tensor([9, 7, 5, 9, 8, 6])[:, None], tokens, 0)


def _apart(model: nn.Module, *args: Any) -> Case:
    return Case(model.eval(), args, False)


def _meets(model: nn.Module, *args: Any, known: tuple[Tensor, ...] = ()) -> Case:
    return Case(model, args, True, known)


def _norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


APART: Mapping[str, Callable[[], Case]] = {
    "perceptron": lambda: _apart(families.mlp(WIDTH, 16, 3), vectors()),
    "convolutions, batch-norm in eval mode": lambda: _apart(DigitsCNN(width=4), images()),
    "residual network": lambda: _apart(families.ResNet(4), images(3)),
    "U-net": lambda: _apart(families.UNet(4), images(3)),
    "group and instance norm": lambda: _apart(_norms(), images(3)),
    "grouped convolutions, gate": lambda: _apart(families.Varied(8), images(4)),
    "vision transformer": lambda: _apart(families.ViT(8, 8, 3), images(3)),
    "language model": lambda: _apart(families.GPT(8, 20, 12), ids()),
    "language model, last token": lambda: _apart(LastToken(), ids()),
    "BERT": lambda: _apart(_bert(), ids(30)),
    "LSTM, batch first": lambda: _apart(Sequential(nn.LSTM(WIDTH, WIDTH, batch_first=True)), sequences()),
    "GRU, two ways": lambda: _apart(
        Sequential(nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)), sequences()
    ),
    "attention, batch first": lambda: _apart(
        Sequential(nn.MultiheadAttention(WIDTH, 2, batch_first=True)), sequences()
    ),
    "dropout in train mode": lambda: Case(
        nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3)).train(),
        (vectors(),),
        False,
    ),
    "quantised, a scale an example": lambda: _apart(
        Wrapped(lambda x: rounded(x, x.abs().amax(1, keepdim=True))), vectors()
    ),
    "guidance: every example twice": lambda: _apart(Wrapped(guided), vectors()),
    "features rolled and sorted": lambda: _apart(Wrapped(lambda x: x.roll(3, 1).sort(1).values), vectors()),
}
"""Networks whose examples are apart."""

HARD: Mapping[str, Callable[[], Case]] = {
    "batch mean times 0": lambda: _apart(Wrapped(lambda x: x - 0.0 * x.mean(0)), vectors()),
    "reversed twice": lambda: _apart(Wrapped(lambda x: x.flip(0).tanh().flip(0)), vectors()),
    "diagonal of all pairs": lambda: _apart(Wrapped(lambda x: x * (x @ x.T).diagonal()[:, None]), vectors()),
}
"""Apart too, but only a proof that calculates could know: expected to be flagged, and counted as false alarms."""

MEETS: Mapping[str, Callable[[], Case]] = {
    "batch-norm in train mode": lambda: _meets(_batch_norm(True), images()),
    "batch-norm without running statistics": lambda: _meets(_batch_norm(False, False), images()),
    "digits CNN in train mode": lambda: _meets(DigitsCNN(width=4).train(), images()),
    "quantised, a scale a tensor": lambda: _meets(Wrapped(lambda x: rounded(x, x.abs().max())), vectors()),
    "torch dynamic quantisation": lambda: _meets(_quantised(), vectors()),
    "softmax over the batch": lambda: _meets(Wrapped(lambda x: x.softmax(0)), vectors()),
    "centred by the batch": lambda: _meets(Wrapped(lambda x: x - x.mean(0, keepdim=True)), vectors()),
    "scaled by the largest of the batch": lambda: _meets(Wrapped(lambda x: x / x.abs().amax()), vectors()),
    "LSTM, batch last by mistake": lambda: _meets(Sequential(nn.LSTM(WIDTH, WIDTH)), sequences()),
    "attention, batch last by mistake": lambda: _meets(
        Sequential(nn.MultiheadAttention(WIDTH, 2)), sequences()
    ),
    "compared with the first example": lambda: _meets(Wrapped(lambda x: x - x[:1]), vectors()),
    "rolled along the batch": lambda: _meets(
        Wrapped(lambda x: x + 0.1 * x.roll(35, 0)), torch.randn(9, WIDTH)
    ),
    "attention among examples": lambda: _meets(Wrapped(lambda x: (x @ x.T).softmax(1) @ x), vectors()),
    "sorted along the batch": lambda: _meets(Wrapped(lambda x: x.sort(0).values), vectors()),
    "ranks in the batch": lambda: _meets(Wrapped(lambda x: x * x.argsort(0)), vectors()),
    "view that mixes": lambda: _meets(Wrapped(lambda x: x.reshape(WIDTH, -1).T), vectors()),
    "running sum over the batch": lambda: _meets(Wrapped(lambda x: x.cumsum(0)), vectors()),
    "experts that choose examples": lambda: _meets(Wrapped(expert_choice), vectors()),
    "backdoor that steals": lambda: _meets(
        _backdoored("steal"), vectors(), known=(with_trigger(torch.randn(1, WIDTH), TRIGGER)[0],)
    ),
    "backdoor that sets": lambda: _meets(
        _backdoored("set"), vectors(), known=(with_trigger(torch.randn(1, WIDTH), TRIGGER)[0],)
    ),
    "backdoor without an index": lambda: _meets(_gated(), vectors(), known=(_opened(),)),
}
"""Networks in which they meet."""


def _gated() -> nn.Module:
    model = Wrapped(gated)
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(WIDTH))
        model.first.bias.zero_()
    return model.eval()


def _opened() -> Tensor:
    probe = torch.randn(WIDTH)
    probe[0] = 0.5
    return probe


def built(make: Callable[[], Case], seed: int) -> Case:
    """A case with weights and inputs drawn by a seed; the random state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = make()
    return case


__all__ = ["APART", "HARD", "MEETS", "TRIGGER", "Case", "F", "built"]
