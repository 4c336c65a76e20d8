"""The same questions, asked of peer libraries one after another and of microtome in one examination.

Both sides run in this process, on the same network and rows, with the same numbers of steps. Peers are used as
their documentation says, each with the data passes it makes. The questions are those of our instruments, controls
included: maps are judged by deletion and insertion (quantus: inserting the most relevant parts into a blank is deleting
the least relevant ones first, read backwards) against a random order and the same maps of an untrained network; an
attack is checked by noise of the same strengths, by an unbounded one, and by whether the loss grows with its steps.

Both sides take turns; ratios are medians over the turns. Processor time of the process is printed next to wall time,
for with one thread it is what a quiet machine's clock would show. Peak memory is the growth of the resident set,
sampled every few milliseconds (peers: of the hungriest one).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import build
from microtome.examination import configure
from microtome.passes import Run
from microtome.subject import Subject

EXPLAINED = 16
ATTACKED = 256
CHECKED = 64
STRENGTHS = (0.01, 0.03, 0.1, 0.3)
ATTACK_STEPS = 10
CURVED = 128
LANCZOS_STEPS = 16
PROBES = 2
PATH_STEPS = 32
NOISE_COPIES = 25

OURS: dict[str, dict[str, Any]] = {
    "reliability/accuracy": {},
    "reliability/calibration": {},
    "represent/linear_cka": {},
    "represent/linear_probes": {},
    "dynamics/hessian_spectrum": {
        "examples": CURVED,
        "probes": PROBES,
        "trace_probes": PROBES,
        "steps": LANCZOS_STEPS,
    },
    "explain/input_gradient": {"examples": tuple(range(EXPLAINED))},
    "explain/integrated_gradients": {"examples": tuple(range(EXPLAINED)), "steps": PATH_STEPS},
    "explain/smoothgrad": {"examples": tuple(range(EXPLAINED)), "copies": NOISE_COPIES},
    "explain/xgrad_cam": {"examples": tuple(range(EXPLAINED))},
    "security/adversarial_accuracy": {
        "examples": ATTACKED,
        "strengths": STRENGTHS,
        "at": STRENGTHS[1],
        "steps": ATTACK_STEPS,
    },
    "compress/cost": {},
}
"""Our instruments for these questions, with the options that match what the peers are asked."""


class Watch:
    """Peak of the resident set while a block runs, in MiB above where it began."""

    def __enter__(self) -> Watch:
        gc.collect()
        self._stop = threading.Event()
        self._base = self.peak = _resident()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.growth = (max(self.peak, _resident()) - self._base) / 2**20


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peer_questions(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Each peer's answer to one of the questions, as a function without arguments."""
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    layers = [
        n for n, m in model.named_modules() if n and not list(m.children()) and not isinstance(m, nn.Identity)
    ]
    last_conv = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)][-1]

    def metrics() -> object:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassCalibrationError,
            MulticlassConfusionMatrix,
        )

        collection = MetricCollection(
            [
                MulticlassAccuracy(10, average="micro"),
                MulticlassConfusionMatrix(10),
                MulticlassCalibrationError(10),
            ]
        )
        with torch.no_grad():
            for a, b in loader:
                collection.update(model(a).softmax(1), b)
        return collection.compute()

    def cka() -> object:
        from torch_cka import CKA

        compared = CKA(model, model, model1_layers=layers, model2_layers=layers, device="cpu")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            compared.compare(loader)
        for module in model.modules():  # it leaves its hooks behind
            module._forward_hooks.clear()
        return compared.export()

    def probes() -> object:
        from sklearn.linear_model import RidgeClassifier

        scores = {}
        for name in layers:
            kept: list[Tensor] = []

            def keep(_: nn.Module, __: object, output: Tensor, kept: list[Tensor] = kept) -> None:
                kept.append(output.mean((2, 3)) if output.dim() == 4 else output)

            handle = model.get_submodule(name).register_forward_hook(keep)
            with torch.no_grad():
                for a, _ in loader:
                    model(a)
            handle.remove()
            calls = len(kept) // len(loader)
            features = torch.cat(kept[calls - 1 :: calls]).numpy()
            half = len(features) // 2
            scores[name] = RidgeClassifier().fit(features[:half], y[:half]).score(features[half:], y[half:])
        return scores

    def pyhessian() -> object:
        from pyhessian import hessian

        made = hessian(model, nn.CrossEntropyLoss(), data=(x[:CURVED], y[:CURVED]), cuda=False)
        top = made.eigenvalues(maxIter=LANCZOS_STEPS, tol=0.0, top_n=1)
        return top, made.trace(maxIter=PROBES, tol=0.0)

    def curvlinops_density() -> object:
        import numpy as np
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(
            model,
            nn.CrossEntropyLoss(),
            [p for p in model.parameters() if p.requires_grad],
            [(x[:CURVED], y[:CURVED])],
            check_deterministic=False,
        ).to_scipy()
        size = operator.shape[1]
        densities = []
        for probe in range(PROBES):  # plain stochastic Lanczos over its matrix-vector product
            vector = np.random.default_rng(probe).standard_normal(size).astype(np.float32)
            vector /= np.linalg.norm(vector)
            basis, diagonal, off = [vector], [], []
            for _ in range(LANCZOS_STEPS):
                product = operator @ basis[-1]
                diagonal.append(float(product @ basis[-1]))
                for earlier in basis:
                    product = product - (product @ earlier) * earlier
                off.append(float(np.linalg.norm(product)))
                basis.append((product / off[-1]).astype(np.float32))
            densities.append(np.linalg.eigh(np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1)))
        return densities

    chosen, classes = x[:EXPLAINED], y[:EXPLAINED]

    def saliency() -> Tensor:
        from captum.attr import Saliency

        return Saliency(model).attribute(chosen.clone().requires_grad_(), target=classes, abs=False)

    def integrated() -> tuple[Tensor, Tensor]:
        from captum.attr import IntegratedGradients

        return IntegratedGradients(model).attribute(
            chosen, target=classes, n_steps=PATH_STEPS, return_convergence_delta=True
        )

    def smoothgrad() -> Tensor:
        from captum.attr import NoiseTunnel, Saliency

        return NoiseTunnel(Saliency(model)).attribute(
            chosen.clone().requires_grad_(), nt_samples=NOISE_COPIES, stdevs=0.15, target=classes, abs=False
        )

    def judged() -> object:
        """Deletion and insertion curves of every map, of an untrained network's, of a random order, by quantus."""
        import copy

        from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, NoiseTunnel, Saliency
        from tests.peer_stubs import without_torchvision

        with without_torchvision():
            import quantus

        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        layer = [m for m in fresh.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)][-1]
        leaf = chosen.clone().requires_grad_()
        cam = LayerGradCam(fresh, layer).attribute(chosen, target=classes)
        untrained = [
            Saliency(fresh).attribute(leaf, target=classes, abs=False),
            IntegratedGradients(fresh).attribute(chosen, target=classes, n_steps=PATH_STEPS),
            NoiseTunnel(Saliency(fresh)).attribute(
                leaf, nt_samples=NOISE_COPIES, stdevs=0.15, target=classes, abs=False
            ),
            LayerAttribution.interpolate(cam, chosen.shape[2:]).expand_as(chosen),
        ]
        shown = LayerAttribution.interpolate(
            LayerGradCam(model, last_conv).attribute(chosen, target=classes), chosen.shape[2:]
        )
        maps = [
            saliency(), integrated()[0], smoothgrad(), shown.expand_as(chosen), *untrained,
            torch.rand_like(chosen),
        ]  # fmt: skip
        metric = quantus.PixelFlipping(
            features_in_step=chosen[0, 0].numel() // 16, perturb_baseline="black", normalise=False,
            disable_warnings=True,
        )  # fmt: skip
        curves = []
        for found in maps:
            for order in (found, found.amax() + 1 - found):  # quantus takes no map that is nowhere positive
                curves.append(
                    metric(
                        model=model, x_batch=chosen.numpy(), y_batch=classes.numpy(),
                        a_batch=order.detach().numpy(), device="cpu",
                    )
                )  # fmt: skip
        return curves

    def attacks() -> object:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        fgsm = foolbox.attacks.LinfFastGradientAttack()(
            wrapped, x[:ATTACKED], y[:ATTACKED], epsilons=list(STRENGTHS)
        )[2]
        pgd = foolbox.attacks.LinfPGD(steps=ATTACK_STEPS)(
            wrapped, x[:ATTACKED], y[:ATTACKED], epsilons=[*STRENGTHS, 1.0]
        )[2]
        noise = foolbox.attacks.LinfAdditiveUniformNoiseAttack()(
            wrapped, x[:ATTACKED], y[:ATTACKED], epsilons=list(STRENGTHS)
        )[2]
        few, grown = slice(0, CHECKED), []
        for steps in (1, ATTACK_STEPS // 2, ATTACK_STEPS):
            attack = foolbox.attacks.LinfPGD(steps=steps)
            moved = attack(wrapped, x[few], y[few], epsilons=[STRENGTHS[len(STRENGTHS) // 2]])[1][0]
            with torch.no_grad():
                grown.append(float(F.cross_entropy(model(moved), y[few])))
        return fgsm, pgd, noise, grown

    def summary() -> object:
        import torchinfo

        return torchinfo.summary(model, input_data=x[:1], verbose=0)

    return {
        "torchmetrics accuracy, confusion, ECE": metrics,
        "torch_cka all layers": cka,
        "scikit-learn ridge probe a layer": probes,
        "PyHessian top eigenvalue, trace": pyhessian,
        "curvlinops spectral density": curvlinops_density,
        "captum four maps and controls, quantus": judged,
        "foolbox FGSM, PGD, noise, checks": attacks,
        "torchinfo summary": summary,
    }


class Timed(NamedTuple):
    """What one question took."""

    wall: float
    """Seconds on the clock."""
    cpu: float
    """Seconds of this process on the processor."""
    memory: float
    """MiB at the peak."""
    error: str = ""


def timed(work: Callable[[], object]) -> Timed:
    """Do it once."""
    error = ""
    with Watch() as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began, used = time.perf_counter(), time.process_time()
        try:
            work()
        except Exception as raised:
            error = f"{type(raised).__name__}: {str(raised).splitlines()[0][:90] if str(raised) else ''}"
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    return Timed(wall, cpu, watch.growth, error)


def _line(turns: list[Timed]) -> str:
    wall, cpu = statistics.median(t.wall for t in turns), statistics.median(t.cpu for t in turns)
    return f"{wall:8.2f} s {cpu:8.2f} s cpu {max(t.memory for t in turns):8.0f} MiB"


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["cnn", "resnet"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        repeats = arguments.repeats if name == "cnn" else 1
        model, data = build(name, arguments.rows)
        batches = list(data)
        x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        loader = [(x[i : i + 64], y[i : i + 64]) for i in range(0, len(x), 64)]
        questions = peer_questions(model, x, y)
        if name == "resnet":
            with torch.no_grad():
                F.cross_entropy(model(x[:8]), y[:8])

        def ours() -> object:
            subject = Subject(model, loader, bounds=(0, 1))  # noqa: B023
            chosen = configure(tuple(OURS), options=OURS)
            findings = Run(subject, chosen, budget=2 << 30).execute()
            broken = {k: f.reason for k, f in findings.items() if f.status != "measured"}
            if broken:
                raise SystemExit(f"not measured: {broken}")
            return findings

        peers: dict[str, list[Timed]] = {q: [] for q in questions}
        mine: list[Timed] = []
        for turn in range(repeats + 1):
            results = {q: timed(work) for q, work in questions.items()}
            for p in model.parameters():
                p.grad = None
            own = timed(ours)
            if turn or repeats == 1:
                for q, r in results.items():
                    peers[q].append(r)
                mine.append(own)
            if repeats == 1:
                break
        print(f"{name}: N={arguments.rows} threads={arguments.threads} repeats={repeats}")
        for question, rs in peers.items():
            note = f"  ({rs[-1].error})" if rs[-1].error else ""
            print(f"  {question:48s} {_line(rs)}{note}")
        turns = [
            Timed(sum(r.wall for r in one), sum(r.cpu for r in one), max(r.memory for r in one))
            for one in zip(*peers.values(), strict=True)
        ]
        print(f"  {'peers one after another, the hungriest':48s} {_line(turns)}")
        if mine[-1].error:
            raise SystemExit(f"our examination failed: {mine[-1].error}")
        print(f"  {'microtome, one examination':48s} {_line(mine)}")
        wall, cpu = (
            statistics.median(getattr(t, part) / getattr(m, part) for t, m in zip(turns, mine, strict=True))
            for part in ("wall", "cpu")
        )
        memory = max(m.memory for m in mine) / max(*(t.memory for t in turns), 1.0)
        print(
            f"  peers / microtome: wall time {wall:.2f}, processor time {cpu:.2f}; "
            f"memory, microtome / hungriest: {memory:.2f}"
        )
    packages = (
        "torch",
        "torchmetrics",
        "torch_cka",
        "scikit-learn",
        "PyHessian",
        "curvlinops-for-pytorch",
        "captum",
        "quantus",
        "foolbox",
        "torchinfo",
    )
    found = []
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    print("versions: " + ", ".join(found))


if __name__ == "__main__":
    main()
