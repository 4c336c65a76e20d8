"""Relevance, guided backprop and FullGrad on the exported program, beside zennit, captum and pytorch-grad-cam.

Three networks: "plain" is a stack of convolution, batch-norm, ReLU module, pool and dense layers, on which every peer
is right; "cnn" and "resnet" are written as people write them (functional and reused ReLUs, residual sums). Peers are
used as documented: zennit with its canonizer that merges batch-norms. Both sides run in this process, in turn; time is
the median of the repeats after one that does not count, without our capture, which is done once a model and printed
apart. The difference of maps is the largest, over the largest entry of ours (and
the median of that over examples: the epsilon rule multiplies what denominators near 0 make of a stabiliser, and zennit
leaves a merged batch-norm its eps of 1e-5). "sum / score" is the median over the
examples of what a map of LRP adds up to, over the logit it explains: 1 but for what biases hold, where it is right.
pytorch-grad-cam's FullGrad brings every channel to 0..1 by itself, the authors' code and ours every layer of an
example, so that those two differ by design.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from tests.peer_stubs import without_torchvision
from torch import Tensor, nn

from benchmarks.models import Generated, build
from microtome.interpret import capture
from microtome.interpret.bias_gradients import decomposed, saliency
from microtome.interpret.gates import GuidedBackprop, pulled_back
from microtome.interpret.relevance import composite, of_class, relevance

with without_torchvision(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_grad_cam
    import zennit.attribution
    import zennit.canonizers
    import zennit.composites
    import zennit.rules
    import zennit.types

Work = Callable[[], Tensor]


class Plain(nn.Module):
    """Modules in a row, each used once; flattened by a function, for which captum has no rule as a module."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((1, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        self.maps = nn.Sequential(*layers, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] -> [n, 10]."""
        return self.head(self.maps(x).flatten(1))


def plain() -> nn.Module:
    """The plain network, trained for a moment."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Plain()
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for x, y in Generated((1, 8, 8), 64 * 20):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        model.zero_grad(set_to_none=True)
    return model.eval()


def questions(model: nn.Module, x: Tensor, classes: Tensor) -> dict[str, tuple[Work, dict[str, Work]]]:
    """By name: our answer and each peer's, as functions that give the map [n, c, h, w] or [n, h, w]."""
    graph = capture(model, (x[:2],))
    seed = of_class(classes)
    slope = nn.functional.one_hot(classes, 10).to(x.dtype)
    low, high = torch.zeros_like(x[:1]), torch.ones_like(x[:1])

    def merge() -> list[Any]:
        return [zennit.canonizers.SequentialMergeBatchNorm()]

    def ours(name: str, **options: Any) -> Work:
        made = composite(name, bounds=(0.0, 1.0), **options)
        return lambda: relevance(graph, (x,), seed, made).map

    def by_zennit(make: Callable[[], Any], start: Callable[[Tensor], Tensor] = seed) -> Work:
        def work() -> Tensor:
            with zennit.attribution.Gradient(model=model, composite=make()) as attributor:
                found: Tensor = attributor(x, start)[1]
            return found

        return work

    def epsilon() -> Any:
        kinds = [
            *zennit.composites.layer_map_base(),
            ((zennit.types.Convolution, nn.Linear), zennit.rules.Epsilon(1e-6)),
        ]
        return zennit.composites.LayerMapComposite(layer_map=kinds, canonizers=merge())

    def captum_lrp() -> Tensor:
        from captum.attr import LRP

        try:
            found: Tensor = LRP(model).attribute(x, target=classes)
        finally:  # it leaves these behind, and refuses to run again while they are there
            for module in model.modules():
                for left in ("activations", "rule"):
                    module.__dict__.pop(left, None)
        return found

    def captum_guided() -> Tensor:
        from captum.attr import GuidedBackprop as Peer

        found: Tensor = Peer(model).attribute(x.clone().requires_grad_(), target=classes)
        return found

    def our_fullgrad() -> Tensor:
        found, places = decomposed(graph, (x,), slope)
        return saliency(found, places, (x.shape[2], x.shape[3]))

    def gradcam_fullgrad() -> Tensor:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with (
            contextlib.redirect_stdout(io.StringIO()),
            pytorch_grad_cam.FullGrad(model=model, target_layers=[]) as cam,
        ):
            found = cam(input_tensor=x.clone(), targets=[ClassifierOutputTarget(int(c)) for c in classes])
        model.zero_grad(set_to_none=True)
        return torch.as_tensor(found)

    return {
        "LRP epsilon": (
            ours("epsilon"),
            {"zennit": by_zennit(epsilon), "captum": captum_lrp},
        ),
        "LRP epsilon-plus-flat": (
            ours("epsilon-plus-flat"),
            {"zennit": by_zennit(lambda: zennit.composites.EpsilonPlusFlat(canonizers=merge()))},
        ),
        "LRP epsilon-gamma-box": (
            ours("epsilon-gamma-box"),
            {"zennit": by_zennit(lambda: zennit.composites.EpsilonGammaBox(low, high, canonizers=merge()))},
        ),
        "guided backprop": (
            lambda: next(iter(pulled_back(graph, (x,), slope, GuidedBackprop()).values())),
            {
                "zennit": by_zennit(zennit.composites.GuidedBackprop, lambda _: slope),
                "captum": captum_guided,
            },
        ),
        "FullGrad": (our_fullgrad, {"pytorch-grad-cam": gradcam_fullgrad}),
    }


def timed(work: Work) -> tuple[float, Tensor | None, str]:
    """Seconds, the map, and the first line of the error, if any."""
    began = time.perf_counter()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            found = work()
    except Exception as raised:
        return (
            time.perf_counter() - began,
            None,
            f"{type(raised).__name__}: {str(raised).strip().splitlines()[0][:80]}",
        )
    return time.perf_counter() - began, found.detach(), ""


def compare(name: str, ours: Work, peers: dict[str, Work], score: Tensor, repeats: int) -> None:
    """Print a line a peer."""
    work = {"": ours, **peers}
    seconds: dict[str, list[float]] = {who: [] for who in work}
    last: dict[str, tuple[float, Tensor | None, str]] = {}
    for turn in range(repeats + 1):
        for who, one in work.items():
            last[who] = timed(one)
            if turn:
                seconds[who].append(last[who][0])
    own = last[""][1]
    if own is None:
        raise SystemExit(f"{name}: ours failed, {last[''][2]}")
    own_time = statistics.median(seconds[""])

    def kept(found: Tensor) -> str:
        if not name.startswith("LRP"):
            return ""
        return f"  sum / score {float((found.flatten(1).sum(1) / score).median()):.3g}"

    print(f"  {name:22s} {'microtome':18s} {own_time * 1e3:8.1f} ms{kept(own)}")
    for who in peers:
        _, found, error = last[who]
        took = statistics.median(seconds[who])
        if found is None:
            print(f"  {name:22s} {who:18s}        -     {error}")
            continue
        if name == "FullGrad":  # it brings its maps to 0..1, an example
            scaled = own.flatten(1) - own.flatten(1).amin(1, keepdim=True)
            mine = (scaled / (scaled.amax(1, keepdim=True) + 1e-7)).reshape(own.shape)
        else:
            mine = own
        each = (found - mine).abs().flatten(1).amax(1) / mine.abs().flatten(1).amax(1)
        gap = float((found - mine).abs().max() / mine.abs().max())
        print(
            f"  {name:22s} {who:18s} {took * 1e3:8.1f} ms  {took / own_time:5.2f} times ours, "
            f"differs by {gap:.2g} (median example {float(each.median()):.2g})"
            f"{kept(found)}"
        )


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["plain", "cnn", "resnet"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        count = 64 if name == "resnet" else 512
        if name == "plain":
            model, data = plain(), Generated((1, 8, 8), count)
        else:
            model, data = build(name, count)
        x = torch.cat([batch[0] for batch in data])
        with torch.no_grad():
            outputs = model(x)
            began = time.perf_counter()
            outputs = model(x)
            forward = time.perf_counter() - began
        classes = outputs.argmax(1)
        score = outputs.gather(1, classes[:, None])[:, 0]
        repeats = arguments.repeats if name != "resnet" else 3
        began = time.perf_counter()
        asked = questions(model, x, classes)
        print(
            f"{name}: N={count} threads={arguments.threads} repeats={repeats}, "
            f"a forward {forward * 1e3:.0f} ms, our capture {time.perf_counter() - began:.1f} s once a model"
        )
        for question, (ours, peers) in asked.items():
            compare(question, ours, peers, score, repeats)
    print(f"versions: {', '.join(f'{p} {version(p)}' for p in ('torch', 'zennit', 'captum', 'grad-cam'))}")


if __name__ == "__main__":
    main()
