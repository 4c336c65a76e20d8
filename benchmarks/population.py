"""Populations against a plain loop, torch.func.vmap and hand-stacked products; and 100 transformers at once.

``python -m benchmarks.population [--threads T] [--repeats R]``: 64 perceptrons 64-32-10 on digits, 20 epochs, batches
of 32, each network with its own order of the data; everything in one process, medians, as ratios to the loop. Then 100
transformers that learn addition modulo 31 (full batch, AdamW), as many steps of all as of a loop over some of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from microtome.data.digits import digits
from microtome.population import Population, Recipe, orders, train

MEMBERS, EPOCHS, BATCH, RATE = 64, 20, 32, 0.1


def build() -> nn.Module:
    """64-32-10."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def data() -> tuple[Tensor, Tensor]:
    """All of the digits' training rows."""
    x, y = next(iter(digits("train", batch_size=2000)))
    return x.flatten(1), y


def loop(start: Population, x: Tensor, y: Tensor, members: int = MEMBERS) -> Tensor:
    """One network after another, as anyone would write it; [members, p] weights."""
    ends = []
    for i in range(members):
        model = start.member(i)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        for epoch in range(EPOCHS):
            for rows in orders([start.seeds[i]], epoch, len(x))[0].split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return torch.stack(ends)


def by_vmap(start: Population, x: Tensor, y: Tensor) -> Tensor:
    """The recipe of torch's own documentation on ensembling."""
    base = build().to("meta")
    parameters, _ = stack_module_state([start.member(i) for i in range(MEMBERS)])
    parameters = {k: v.detach().clone() for k, v in parameters.items()}

    def loss(p: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, p, (a,)), b)

    step = vmap(grad(loss))
    for epoch in range(EPOCHS):
        order = orders(start.seeds, epoch, len(x))
        for rows in order.split(BATCH, 1):
            gradients = step(parameters, x[rows], y[rows])
            for name, p in parameters.items():
                p.sub_(gradients[name], alpha=RATE)
    return torch.cat([p.flatten(1) for p in parameters.values()], 1)


def by_hand(start: Population, x: Tensor, y: Tensor) -> Tensor:
    """Stacked parameters, baddbmm, autograd."""
    w1, b1, w2, b2 = (p.clone().requires_grad_() for p in start.parameters.values())
    held = [w1, b1, w2, b2]
    for epoch in range(EPOCHS):
        order = orders(start.seeds, epoch, len(x))
        for rows in order.split(BATCH, 1):
            hidden = torch.baddbmm(b1[:, None], x[rows], w1.mT).relu()
            logits = torch.baddbmm(b2[:, None], hidden, w2.mT)
            loss = F.cross_entropy(logits.flatten(0, 1), y[rows].flatten(), reduction="sum") / rows.shape[1]
            gradients = torch.autograd.grad(loss, held)
            with torch.no_grad():
                torch._foreach_sub_(held, gradients, alpha=RATE)
    return torch.cat([p.detach().flatten(1) for p in held], 1)


def ours(start: Population, x: Tensor, y: Tensor) -> Tensor:
    """The engine, tracing included."""
    population = start.copy()
    train(population, x, y, Recipe(optimizer="sgd", rate=RATE, epochs=EPOCHS, batch_size=BATCH))
    return population.vectors()


def compare(threads: int, repeats: int) -> dict[str, float]:
    """Seconds (medians) and ratios to the loop of all 64 networks; rounds alternate, so drift hits all alike."""
    torch.set_num_threads(threads)
    x, y = data()
    start = Population.of(build, range(MEMBERS))
    ways: dict[str, Callable[[Population, Tensor, Tensor], Tensor]] = {
        "loop": loop,
        "torch.func.vmap": by_vmap,
        "hand-stacked baddbmm": by_hand,
        "population": ours,
    }
    for name, way in ways.items():  # warm up: imports, caches
        loop(start, x, y, 1) if name == "loop" else way(start, x, y)
    times: dict[str, list[float]] = {name: [] for name in ways}
    ends = {}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            ends[name] = way(start, x, y)
            times[name].append(time.perf_counter() - began)
    found = {}
    for name, seconds in times.items():
        found[f"{name}, s"] = statistics.median(seconds)
        found[f"{name}, times faster than the loop"] = statistics.median(
            a / b for a, b in zip(times["loop"], seconds, strict=True)
        )
        found[f"{name}, furthest weight from the loop's"] = float((ends[name] - ends["loop"]).abs().max())
    return found


def transformers(
    threads: int, steps: int = 10, looped: int = 4, members: int = 100, p: int = 31
) -> dict[str, float]:
    """Milliseconds a network and step, at once and in a loop, and the memory that all take."""
    import resource

    from microtome.data.modular import modular_pairs, modular_table
    from microtome.nn.modular_transformer import ModularTransformer

    torch.set_num_threads(threads)
    rows = torch.randperm(p * p, generator=torch.Generator().manual_seed(0))[: p * p // 3]
    x, y = modular_pairs(p)[rows], modular_table(p)[rows]
    population = Population.of(lambda: ModularTransformer(p, 64, 4, 128), range(members))
    options = {"weight_decay": 1.0, "betas": (0.9, 0.98)}

    def at_once(count: int) -> None:
        train(population, x, y, Recipe(optimizer="adamw", rate=1e-3, steps=count, options=options))

    at_once(1)  # imports
    began = time.perf_counter()
    at_once(1)
    first = time.perf_counter() - began
    began = time.perf_counter()
    at_once(steps + 1)
    ours = (time.perf_counter() - began - first) / steps / members
    models = [population.member(i) for i in range(looped)]
    began = time.perf_counter()
    for model in models:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=1.0)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    loop = (time.perf_counter() - began) / steps / looped
    return {
        "transformers": float(members),
        "transformers, ms a network and step, population": 1e3 * ours,
        "transformers, ms a network and step, loop": 1e3 * loop,
        "transformers, times faster than the loop": loop / ours,
        "transformers, peak memory of the process, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 1024,
    }


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = compare(options.threads, options.repeats) | transformers(options.threads)
    print(json.dumps({"threads": options.threads} | found, indent=1))


if __name__ == "__main__":
    main()
