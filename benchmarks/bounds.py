"""Certified bounds: intervals, CROWN-IBP, CROWN and optimised CROWN, here and in auto_LiRPA, in one process.

Both sides bound the outputs of the same network on the same boxes, in turns; a figure is the median of the repeats.
Differences are shown as a share of the mean width, in float32 and, where it is cheap, in float64: there both compute
the same bounds, while in float32 microtome widens its own for rounding and the peer does not. Optimised CROWN is timed
by step; the peer's steps also tune the slopes of intermediate bounds, microtome's those of the final walk.

The second table is what the peer refuses: networks of the families below, with the first line of its error.

auto_LiRPA 0.3 (the last on PyPI) was written for torch 1.11; ``peer`` gives it the functions it imports that torch and
numpy have moved or dropped since. It runs as shipped otherwise, in whichever of its two modes for convolutions is the
faster one that works. Both sides profit from the setting of the allocator that microtome makes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import build
from microtome.interpret import capture, concrete, sources
from microtome.interpret.interval import Interval, interval_bounds
from microtome.interpret.linear_bounds import linear_bounds

STEPS = 20
Ends = tuple[Tensor, Tensor]


def peer() -> Any:
    """Import auto_LiRPA with what it misses in this torch and numpy."""
    import numpy as np
    import torch.onnx.symbolic_helper as symbolic
    import torch.onnx.utils as onnx_utils
    from torch.onnx._internal.torchscript_exporter import utils
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    moved: Any = types.ModuleType("numpy.lib.arraysetops")
    moved.isin = np.isin
    sys.modules.setdefault("numpy.lib.arraysetops", moved)
    onnx_utils._optimize_graph = utils._optimize_graph
    symbolic._set_opset_version = lambda value: setattr(GLOBALS, "export_onnx_opset_version", value)
    torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)
    found = importlib.import_module("auto_LiRPA")
    members = found.BoundedModule._named_members
    found.BoundedModule._named_members = lambda self, get, prefix="", recurse=True, **_: members(
        self, get, prefix, recurse
    )
    return found


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def digits() -> nn.Module:
    """The digits CNN, its pool written as the same strided convolution: the peer's rule for pools fails."""
    model = build("cnn", 1)[0]
    pool = nn.Conv2d(32, 32, 2, stride=2, groups=1, bias=False)
    pool.weight = nn.Parameter(torch.eye(32)[:, :, None, None].expand(-1, -1, 2, 2) / 4)
    model.pool = pool
    return model


def resnet() -> nn.Module:
    """ResNet-18 without the overlapping max-pool, which the peer refuses."""
    model: Any = build("resnet", 1)[0]
    model.stem[3] = nn.Identity()
    return model


# name: network, shape of an example, examples, radius, methods
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float, tuple[str, ...]]] = {
    "mlp 64-100-100-10": (mlp, (64,), 512, 0.02, ("IBP", "CROWN-IBP", "CROWN", "steps")),
    "small CNN": (convolutions, (1, 8, 8), 32, 0.02, ("IBP", "CROWN-IBP", "CROWN", "steps")),
    "digits CNN": (digits, (1, 8, 8), 32, 0.02, ("IBP", "CROWN-IBP", "CROWN")),
    "ResNet-18": (resnet, (3, 64, 64), 2, 1e-4, ("IBP", "CROWN-IBP")),
}


def ours(model: nn.Module, x: Tensor, radius: float, method: str, steps: int = STEPS) -> Callable[[], Ends]:
    """Our bounds as a function without arguments."""
    graph = capture(model, (x[: min(3, len(x))],))
    box = Interval.around(x, radius)

    def work() -> Ends:
        if method == "IBP":
            found = interval_bounds(graph, box)
        elif method == "CROWN-IBP":
            found = linear_bounds(graph, box, intermediate="interval")
        else:
            found = linear_bounds(graph, box, steps=steps if method == "steps" else 0)
        return found.lower, found.upper

    return work


def theirs(
    library: Any, model: nn.Module, x: Tensor, radius: float, method: str, mode: str, steps: int = STEPS
) -> Callable[[], Ends]:
    """The peer's bounds as a function without arguments."""
    options = {
        "conv_mode": mode,
        "optimize_bound_args": {"iteration": steps, "early_stop_patience": 10 * steps},
        # its default fails for batches whose examples have different open neurons
        **({"sparse_features_alpha": False, "sparse_spec_alpha": False} if method == "steps" else {}),
    }
    bounded = library.BoundedModule(model, x, bound_opts=options, verbose=False)
    box = library.BoundedTensor(x, library.PerturbationLpNorm(norm=float("inf"), eps=radius))
    name = "CROWN-Optimized" if method == "steps" else method

    def work() -> Ends:
        with torch.set_grad_enabled(method == "steps"):
            lower, upper = bounded.compute_bounds(x=(box,), method=name)
        return lower.detach(), upper.detach()

    return work


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def difference(first: Ends, second: Ends) -> float:
    """Greatest difference of either end, as a share of the mean width."""
    width = float((first[1] - first[0]).mean())
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / width


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:80] if text else ''}"


def fastest_mode(
    library: Any, model: nn.Module, x: Tensor, radius: float, method: str
) -> tuple[Callable[[], Ends], str]:
    """The peer in the mode that works and is faster."""
    found: list[tuple[float, str, Callable[[], Ends]]] = []
    error: Exception | None = None
    for mode in ("patches", "matrix"):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                work = theirs(library, model, x, radius, method, mode)
                work()
            found.append((seconds(work), mode, work))
        except Exception as raised:
            error = raised
    if not found:
        assert error is not None
        raise error
    return min(found, key=lambda each: each[0])[2], min(found, key=lambda each: each[0])[1]


def compare(library: Any, name: str, repeats: int) -> None:
    """A line for each method on one network."""
    make, shape, count, radius, methods = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    x = torch.rand(count, *shape)
    with torch.no_grad():
        model(x)
        bare = statistics.median(seconds(lambda: model(x)) for _ in range(9))
    print(f"{name}: N={count} radius={radius:g}, one forward {bare * 1e3:.2f} ms")
    for method in methods:
        try:
            rival, mode = fastest_mode(library, model, x, radius, method)
        except Exception as raised:
            print(f"  {method:10s} the peer fails: {first_line(raised)}")
            continue
        own = ours(model, x, radius, method)
        gap, slow = difference(own(), rival()), seconds(rival)
        times: list[tuple[float, float]] = []
        for _ in range(1 if slow > 5 else repeats):
            times.append((seconds(own), seconds(rival)))
        mine, other = (statistics.median(each[i] for each in times) for i in (0, 1))
        exact = ""
        if method != "steps" and slow < 1:
            twice = (model.double(), x.double())
            gap64 = difference(
                ours(*twice, radius, method)(), theirs(library, *twice, radius, method, mode)()
            )
            model.float()
            exact = f", in float64 {gap64:.0e}"
        share = STEPS if method == "steps" else 1
        width = float((own()[1] - own()[0]).mean())
        what = f"{STEPS} steps, each" if method == "steps" else method
        print(
            f"  {what:14s} microtome {mine / share * 1e3:9.2f} ms ({mine / share / bare:6.0f} forwards), "
            f"auto_LiRPA {other / share * 1e3:9.2f} ms ({other / share / bare:6.0f}, {mode}): "
            f"ratio {mine / other:.2f}; mean width {width:.3g}, "
            f"greatest difference / width {gap:.0e}{exact}",
            flush=True,
        )


class Block(nn.Module):
    """A pre-norm transformer block in plain PyTorch."""

    def __init__(self, width: int = 16, heads: int = 2, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.block, self.head = Block(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1))[:, 0])


class GPT(nn.Module):
    """Token ids through one causal block; the box lies around the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.block, self.head = nn.Embedding(11, 16), Block(causal=True), nn.Linear(16, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.token(ids)))


class Last(nn.Module):
    """A recurrent network read at its last step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import BertConfig, BertModel

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20}
            config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
            self.bert, self.head = BertModel(config, add_pooling_layer=False), nn.Linear(16, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bert(input_ids=ids).last_hidden_state[:, 0])

    return Pooled(), (torch.randint(0, 20, (3, 5)),)


WIDER: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "average pool": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()),
        (torch.rand(3, 1, 8, 8),),
    ),
    "overlapping max-pool": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2), nn.Flatten()),
        (torch.rand(3, 1, 8, 8),),
    ),
    "grouped convolution": lambda: (
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Flatten()),
        (torch.rand(3, 4, 6, 6),),
    ),
    "layer-norm": lambda: (
        nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)),
        (torch.randn(3, 8),),
    ),
    "group-norm": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()),
        (torch.rand(3, 1, 6, 6),),
    ),
    "GELU": lambda: (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)), (torch.randn(3, 8),)),
    "SiLU": lambda: (nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 3)), (torch.randn(3, 8),)),
    "softplus": lambda: (
        nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 3)),
        (torch.randn(3, 8),),
    ),
    "LSTM": lambda: (Last(nn.LSTM(4, 8, batch_first=True)), (torch.randn(3, 4, 4),)),
    "GRU": lambda: (Last(nn.GRU(4, 8, batch_first=True)), (torch.randn(3, 4, 4),)),
    "transformer block": lambda: (Block(), (torch.randn(3, 4, 16),)),
    "nn.TransformerEncoderLayer": lambda: (
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        (torch.randn(3, 4, 16),),
    ),
    "ViT": lambda: (ViT(), (torch.rand(3, 1, 8, 8),)),
    "GPT block on token ids": lambda: (GPT(), (torch.randint(0, 11, (3, 5)),)),
    "BERT (transformers)": bert,
}


def refusals(library: Any, radius: float) -> None:
    """For each family, our mean width under CROWN and whether the peer answers."""
    print(f"wider families: CROWN, N=3, radius={radius:g}")
    for name, make in WIDER.items():
        torch.manual_seed(0)
        model, args = make()
        model = model.eval().requires_grad_(False)
        graph = capture(model, args)
        start = sources(graph)[0]
        center = concrete(graph, args, keep=[start]).values[start]
        found = linear_bounds(graph, {start: Interval.around(center, radius)}, graph.bind(args))
        try:
            if not args[0].is_floating_point():
                model, args = _on_embeddings(model), (center,)
            answer = fastest_mode(library, model, args[0], radius, "CROWN")[0]()
            verdict = f"mean width {float((answer[1] - answer[0]).mean()):.4g}"
        except Exception as raised:
            verdict = f"fails, {first_line(raised)}"
        print(
            f"  {name:27s} microtome mean width {float(found.width.mean()):.4g}; auto_LiRPA {verdict}",
            flush=True,
        )


def _on_embeddings(model: nn.Module) -> nn.Module:
    """The same network from its embeddings on, which is how the peer asks for a box around words."""

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            whole: Any = self.model
            if isinstance(whole, GPT):
                return whole.head(whole.block(x))
            return whole.head(whole.bert(inputs_embeds=x).last_hidden_state[:, 0])

    return Tail()


def main() -> None:
    """Print a table for each network, then the wider families."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-families", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    library = peer()
    logging.disable(logging.ERROR)  # the peer logs every operation it refuses; the table says it once
    print(
        f"auto_LiRPA {version('auto_LiRPA')}, torch {torch.__version__}, threads={arguments.threads}, "
        f"repeats={arguments.repeats}"
    )
    for name in arguments.networks:
        compare(library, name, arguments.repeats)
    if not arguments.without_families:
        refusals(library, 1e-3)


if __name__ == "__main__":
    main()
