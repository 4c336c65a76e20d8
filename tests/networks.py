"""Networks and batches as users have them, tiny; each function gives (model, data)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 24


def seeded(build: Callable[[], Any]) -> Callable[[], Any]:
    """Build under a fixed seed, whatever was drawn before."""

    def made() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return build()

    made.__name__ = build.__name__
    return made


def cut(size: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Batches of a few rows."""
    return [tuple(t[i : i + size] for t in tensors) for i in range(0, len(tensors[0]), size)]


def labels(classes: int = 3, rows: int = ROWS) -> Tensor:
    return torch.arange(rows) % classes


# ---------------------------------------------------------------------------------------- transformers


@seeded
def hf_bert() -> tuple[nn.Module, Iterable[Any]]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    batches = []
    for start, length in ((0, 8), (8, 6), (16, 8)):
        mask = torch.ones(8, length, dtype=torch.long)
        mask[::2, length - 3 :] = 0
        ids = torch.randint(1, 50, (8, length)) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels()[start : start + 8]})
    return BertForSequenceClassification(config), batches


@seeded
def hf_gpt2() -> tuple[nn.Module, Iterable[Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    batches = []
    for length in (7, 10, 7):
        ids = torch.randint(0, 40, (8, length))
        mask = torch.ones_like(ids)
        mask[::3, -2:] = 0
        batches.append(
            {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}
        )
    return GPT2LMHeadModel(config), batches


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (p.view(n, t, self.heads, -1).transpose(1, 2) for p in self.qkv(self.norm1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).contiguous().view(n, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NanoGPT(nn.Module):
    """The common shape of a small language model: logits at the last position only unless given targets."""

    def __init__(self, vocabulary: int = 30, width: int = 16, last_only: bool = True) -> None:
        super().__init__()
        self.last_only = last_only
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(_Block(width, 2) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if targets is not None:
            logits = self.head(x)
            return logits, F.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), ignore_index=-1)
        return self.head(x[:, [-1]] if self.last_only else x), None


def _stream() -> list[tuple[Tensor, ...]]:
    text = torch.randint(0, 30, (ROWS, 9))
    return cut(8, text[:, :-1].contiguous(), text[:, 1:].contiguous())


@seeded
def nano_gpt() -> tuple[nn.Module, Iterable[Any]]:
    return NanoGPT(), _stream()


@seeded
def nano_gpt_all_positions() -> tuple[nn.Module, Iterable[Any]]:
    return NanoGPT(last_only=False), _stream()


@seeded
def transformer_encoder() -> tuple[nn.Module, Iterable[Any]]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
            self.embed, self.encoder, self.head = (
                nn.Embedding(20, 12),
                nn.TransformerEncoder(layer, 2),
                nn.Linear(12, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0).mean(1))

    ids = torch.randint(1, 20, (ROWS, 6))
    ids[::3, 4:] = 0
    return Net(), cut(7, ids, labels())


# --------------------------------------------------------------------------------------------- images


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return self.relu(y)


@seeded
def resnet() -> tuple[nn.Module, Iterable[Any]]:
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 6, 3, padding=1),
            norm=nn.BatchNorm2d(6),
            relu=nn.ReLU(inplace=True),
            block1=_Residual(6),
            block2=_Residual(6),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(6, 3),
        )
    )
    x = torch.rand(ROWS, 3, 8, 8)
    model.train()
    with torch.no_grad():
        model(x)  # running statistics that are not the initial ones
    return model, cut(10, x, labels())


@seeded
def in_place_first() -> tuple[nn.Module, Iterable[Any]]:
    """The very first operation writes into the inputs."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return self.fc2(F.relu_(self.fc1(x)))

    return Net(), cut(9, torch.rand(ROWS, 5), labels())


@seeded
def segmentation() -> tuple[nn.Module, Iterable[Any]]:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    targets = torch.randint(0, 3, (ROWS, 5, 5))
    targets[0, 0] = -100
    return model, cut(8, torch.rand(ROWS, 1, 5, 5), targets)


# ------------------------------------------------------------------------------------------ recurrence


class _Recurrent(nn.Module):
    def __init__(
        self, cell: type[nn.Module], batch_first: bool, tokens: bool = False, transposed: bool = True
    ) -> None:
        super().__init__()
        self.batch_first, self.transposed = batch_first, transposed
        self.embed = nn.Embedding(11, 4) if tokens else None
        self.cell = cell(4, 6, batch_first=batch_first)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.batch_first and self.transposed:
            x = x.transpose(0, 1)
        x = x if self.embed is None else self.embed(x)
        y, _ = self.cell(x)
        return self.head(y[:, -1] if self.batch_first else y[-1])


@seeded
def lstm() -> tuple[nn.Module, Iterable[Any]]:
    return _Recurrent(nn.LSTM, True), cut(7, torch.randn(ROWS, 5, 4), labels())


@seeded
def gru_time_first() -> tuple[nn.Module, Iterable[Any]]:
    return _Recurrent(nn.GRU, False), cut(7, torch.randn(ROWS, 5, 4), labels())


@seeded
def lstm_tokens_time_first() -> tuple[nn.Module, Iterable[Any]]:
    return _Recurrent(nn.LSTM, False, tokens=True), cut(7, torch.randint(0, 11, (ROWS, 5)), labels())


@seeded
def gru_data_time_first() -> tuple[nn.Module, Iterable[Any]]:
    """Batches [time, examples, features], as without batch_first."""
    x, y = torch.randn(5, ROWS, 4), labels()
    batches = [(x[:, i : i + 7].contiguous(), y[i : i + 7]) for i in range(0, ROWS, 7)]
    return _Recurrent(nn.GRU, False, transposed=False), batches


# --------------------------------------------------------------------------------- outputs and batches


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


@dataclass
class Scores:
    scores: Tensor
    note: str = ""


class Pair(NamedTuple):
    loss: Tensor
    scores: Tensor


class Wrapped(nn.Module):
    """A small network that returns its answer in some wrapping."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        hidden = self.relu(self.fc1(x))
        return self.wrap(hidden, self.fc2(hidden))


def _wrapped(
    name: str, wrap: Callable[[Tensor, Tensor], Any]
) -> Callable[[], tuple[nn.Module, Iterable[Any]]]:
    def build() -> tuple[nn.Module, Iterable[Any]]:
        return Wrapped(wrap), cut(9, torch.randn(ROWS, 4), labels())

    build.__name__ = name
    return seeded(build)


tuple_output = _wrapped("tuple_output", lambda h, y: (y, h))
loss_first_output = _wrapped("loss_first_output", lambda h, y: Pair(y.square().mean(), y))
dict_output = _wrapped("dict_output", lambda h, y: {"hidden": h, "logits": y})
dataclass_output = _wrapped("dataclass_output", lambda h, y: Answer(h, y))
nameless_dataclass_output = _wrapped("nameless_dataclass_output", lambda h, y: Scores(y))


@seeded
def dict_inside() -> tuple[nn.Module, Iterable[Any]]:
    """Modules that hand dicts, lists and dataclasses to one another."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x @ self.weight}

    class Second(nn.Module):
        def forward(self, given: dict[str, Tensor]) -> Answer:
            return Answer(given["y"].tanh(), given["y"])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = First(), Second(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.head(self.second(self.first(x)).hidden)]

    return Net(), cut(9, torch.randn(ROWS, 4), labels())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(a) + self.right(b)))


@seeded
def two_inputs() -> tuple[nn.Module, Iterable[Any]]:
    return TwoInputs(), cut(9, torch.randn(ROWS, 4), torch.randn(ROWS, 2), labels())


@seeded
def two_inputs_nested() -> tuple[nn.Module, Iterable[Any]]:
    return TwoInputs(), [
        ([a, b], y) for a, b, y in cut(9, torch.randn(ROWS, 4), torch.randn(ROWS, 2), labels())
    ]


@seeded
def two_inputs_dict() -> tuple[nn.Module, Iterable[Any]]:
    return TwoInputs(), [
        ({"b": b, "a": a}, y) for a, b, y in cut(9, torch.randn(ROWS, 4), torch.randn(ROWS, 2), labels())
    ]


@seeded
def optional_second_input() -> tuple[nn.Module, Iterable[Any]]:
    class Net(TwoInputs):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return super().forward(a, b if b is not None else a[:, :2])

    return Net(), cut(9, torch.randn(ROWS, 4), torch.randn(ROWS, 2), labels())


# -------------------------------------------------------------------------------------- parts and modes


@seeded
def shared_weights() -> tuple[nn.Module, Iterable[Any]]:
    """One module called twice, one weight in two modules, F.relu beside a module called relu."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.again.weight = self.fc.weight
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.fc(x))
            x = F.relu(self.fc(x))
            return self.head(self.relu(self.again(x)))

    return Net(), cut(9, torch.randn(ROWS, 6), labels())


def _mlp(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, outputs))


@seeded
def frozen() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp().requires_grad_(False), cut(9, torch.randn(ROWS, 4), labels())


@seeded
def no_grad_backbone() -> tuple[nn.Module, Iterable[Any]]:
    """Gradients stop half way."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.backbone(x).tanh()
            return self.head(x)

    return Net(), cut(9, torch.randn(ROWS, 4), labels())


@seeded
def train_mode() -> tuple[nn.Module, Iterable[Any]]:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    return model.train(), cut(9, torch.randn(ROWS, 4), labels())


@seeded
def functional_dropout() -> tuple[nn.Module, Iterable[Any]]:
    """F.dropout whose training argument was forgotten: random also in eval mode."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.3))

    return Net(), cut(9, torch.randn(ROWS, 4), labels())


@seeded
def bfloat16() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp().bfloat16(), cut(9, torch.randn(ROWS, 4).bfloat16(), labels())


@seeded
def float64() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp().double(), cut(9, torch.randn(ROWS, 4).double(), labels())


@seeded
def exported() -> tuple[nn.Module, Iterable[Any]]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))

    x = torch.rand(ROWS, 1, 6, 6)
    shapes = ({0: torch.export.Dim("n")},)
    return torch.export.export(Net().eval(), (x[:4],), dynamic_shapes=shapes).module(), cut(8, x, labels())


@seeded
def exported_fixed_batch() -> tuple[nn.Module, Iterable[Any]]:
    x = torch.randn(ROWS, 4)
    return torch.export.export(_mlp().eval(), (x[:8],)).module(), cut(8, x, labels())


@seeded
def batch_dependent() -> tuple[nn.Module, Iterable[Any]]:
    """Normalises over the batch, so examples reach one another."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc1(x)
            return self.fc2(F.relu(F.batch_norm(y, None, None, training=True)))

    return Net(), cut(8, torch.randn(ROWS, 4), labels())


@seeded
def early_exit() -> tuple[nn.Module, Iterable[Any]]:
    """The middle layer is not called in every batch."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.middle, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc1(x)
            if x.sum() > -1e3:
                y = self.middle(y).relu()
            return self.fc2(y)

    x = torch.randn(ROWS, 4)
    x[18:] -= 1e3
    return Net(), cut(6, x, labels())


# ---------------------------------------------------------------------------------------------- tasks


@seeded
def multilabel() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp(4), cut(9, torch.randn(ROWS, 4), (torch.rand(ROWS, 4) < 0.4).float())


@seeded
def one_hot() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp(3), cut(9, torch.randn(ROWS, 4), F.one_hot(labels(), 3).float())


@seeded
def regression_column() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp(1), cut(9, torch.randn(ROWS, 4), torch.randn(ROWS, 1))


@seeded
def regression_flat() -> tuple[nn.Module, Iterable[Any]]:
    return nn.Sequential(_mlp(1), nn.Flatten(0)), cut(9, torch.randn(ROWS, 4), torch.randn(ROWS))


@seeded
def binary_single_logit() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp(1), cut(9, torch.randn(ROWS, 4), labels(2).float()[:, None])


@seeded
def binary_flat_logit() -> tuple[nn.Module, Iterable[Any]]:
    return nn.Sequential(_mlp(1), nn.Flatten(0)), cut(9, torch.randn(ROWS, 4), labels(2))


@seeded
def binary_probability() -> tuple[nn.Module, Iterable[Any]]:
    return nn.Sequential(_mlp(1), nn.Sigmoid()), cut(9, torch.randn(ROWS, 4), labels(2).float()[:, None])


@seeded
def label_column() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp(3), cut(9, torch.randn(ROWS, 4), labels()[:, None])


@seeded
def probabilities() -> tuple[nn.Module, Iterable[Any]]:
    return nn.Sequential(_mlp(3), nn.Softmax(1)), cut(9, torch.randn(ROWS, 4), labels())


@seeded
def tagging() -> tuple[nn.Module, Iterable[Any]]:
    """A label for every position of a sequence of vectors."""
    return _mlp(3), cut(9, torch.randn(ROWS, 5, 4), torch.randint(0, 3, (ROWS, 5)))


@seeded
def autoencoder() -> tuple[nn.Module, Iterable[Any]]:
    return nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6)), [
        (x, x) for (x,) in cut(9, torch.randn(ROWS, 6))
    ]


@seeded
def unlabelled() -> tuple[nn.Module, Iterable[Any]]:
    return _mlp(3), [x for (x,) in cut(9, torch.randn(ROWS, 4))]


@seeded
def one_row_batches() -> tuple[nn.Module, Iterable[Any]]:
    return _Recurrent(nn.GRU, False), cut(1, torch.randn(5, 5, 4), labels(rows=5))


# --------------------------------------------------------------------------------------------- graphs


@seeded
def gcn() -> tuple[nn.Module, Iterable[Any]]:
    from torch_geometric.data import Data
    from torch_geometric.nn import GCNConv

    class GCN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = GCNConv(5, 8), GCNConv(8, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)

    nodes = 20
    edges = torch.randint(0, nodes, (2, 60))
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[3::2] = True
    graph = Data(
        x=torch.randn(nodes, 5), edge_index=edges, y=labels(3, nodes), train_mask=~mask, test_mask=mask
    )
    return GCN(), [graph]


def _graphs() -> list[Any]:
    from torch_geometric.data import Data

    made = []
    for i in range(12):
        nodes = 4 + i % 3
        made.append(
            Data(
                x=torch.randn(nodes, 5), edge_index=torch.randint(0, nodes, (2, 10)), y=torch.tensor([i % 2])
            )
        )
    return made


def _gin() -> nn.Module:
    from torch_geometric.nn import GINConv, global_add_pool

    class GIN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = GINConv(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8)))
            self.conv2 = GINConv(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
            self.fc, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, data: Any) -> Tensor:
            x = self.conv1(data.x, data.edge_index).relu()
            x = global_add_pool(self.conv2(x, data.edge_index), data.batch)
            return self.head(F.relu(self.fc(x)))

    return GIN()


@seeded
def gin() -> tuple[nn.Module, Iterable[Any]]:
    from torch_geometric.loader import DataLoader

    return _gin(), DataLoader(_graphs(), batch_size=5)


@seeded
def gin_shuffled() -> tuple[nn.Module, Iterable[Any]]:
    from torch_geometric.loader import DataLoader

    return _gin(), DataLoader(_graphs(), batch_size=5, shuffle=True)


@dataclass(frozen=True)
class Case:
    """One network and what must be inferred about it."""

    build: Callable[[], tuple[nn.Module, Iterable[Any]]]
    task: str
    classes: int | None
    says: str
    """Words the statement must hold."""
    predictions: int = ROWS

    @property
    def name(self) -> str:
        return self.build.__name__


CASES = [
    Case(hf_bert, "classification", 3, "dicts: inputs input_ids, attention_mask; targets 'labels'"),
    Case(hf_gpt2, "language-modelling", 40, "shifted by one", 150),
    Case(nano_gpt, "language-modelling", 30, "one step later", 192),
    Case(nano_gpt_all_positions, "language-modelling", 30, "one step later", 192),
    Case(transformer_encoder, "classification", 3, "3 classes"),
    Case(resnet, "classification", 3, "inputs lie in 0..1"),
    Case(in_place_first, "classification", 3, "writes into its inputs"),
    Case(segmentation, "classification", 3, "every position", 595),
    Case(lstm, "classification", 3, "3 classes"),
    Case(gru_time_first, "classification", 3, "3 classes"),
    Case(lstm_tokens_time_first, "classification", 3, "act on the output of 'embed'"),
    Case(gru_data_time_first, "classification", 3, "dimension 1"),
    Case(tuple_output, "classification", 3, "3 classes"),
    Case(loss_first_output, "classification", 3, "3 classes"),
    Case(dict_output, "classification", 3, "3 classes"),
    Case(dataclass_output, "classification", 3, "3 classes"),
    Case(nameless_dataclass_output, "classification", 3, "3 classes"),
    Case(dict_inside, "classification", 3, "3 classes"),
    Case(two_inputs, "classification", 3, "2 inputs"),
    Case(two_inputs_nested, "classification", 3, "2 inputs"),
    Case(two_inputs_dict, "classification", 3, "inputs a, b"),
    Case(optional_second_input, "classification", 3, "2 inputs"),
    Case(shared_weights, "classification", 3, "3 classes"),
    Case(frozen, "classification", 3, "3 classes"),
    Case(no_grad_backbone, "classification", 3, "3 classes"),
    Case(train_mode, "classification", 3, "measured in eval mode"),
    Case(functional_dropout, "classification", 3, "draws random numbers"),
    Case(bfloat16, "classification", 3, "3 classes"),
    Case(float64, "classification", 3, "3 classes"),
    Case(exported, "classification", 3, "mode it was exported in"),
    Case(exported_fixed_batch, "classification", 3, "batches of 8"),
    Case(batch_dependent, "classification", 3, "reach one another"),
    Case(early_exit, "classification", 3, "3 classes"),
    Case(multilabel, "multilabel", 4, "4 labels"),
    Case(one_hot, "classification", 3, "one-hot"),
    Case(regression_column, "regression", None, "regression of 1 value"),
    Case(regression_flat, "regression", None, "regression of 1 value"),
    Case(binary_single_logit, "classification", 2, "binary"),
    Case(binary_flat_logit, "classification", 2, "binary"),
    Case(binary_probability, "classification", 2, "read as probabilities"),
    Case(label_column, "classification", 3, "3 classes"),
    Case(probabilities, "classification", 3, "read as probabilities"),
    Case(tagging, "classification", 3, "every position", 120),
    Case(autoencoder, "regression", None, "regression of 6 values"),
    Case(unlabelled, "unlabelled", None, "no targets", 0),
    Case(one_row_batches, "classification", 3, "3 classes", 5),
    Case(gcn, "node-classification", 3, "nodes of test_mask", 9),
    Case(gin, "classification", 2, "graphs", 12),
    Case(gin_shuffled, "classification", 2, "shuffles", 12),
]
