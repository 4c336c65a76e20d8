"""Gradient norms and the gradient noise scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import bars, histogram
from microtome.finding import Figure, Finding, Quantity, Table
from microtome.folds import Collect, Moments, Rows, Sample, Sum
from microtome.instrument import Asking, HasParameters, HasTargets, Independent, Instrument
from microtome.instruments.dynamics._words import eval_mode, loss_unit
from microtome.signals import Constant, derive, example_gradient_norms, gradient, loss, rows
from microtome.statistics import student
from microtome.subject import Subject

GROUPS = 16
HOW = "jackknife over groups of examples"


def _along(gradient: Tensor, direction: Constant) -> Tensor:
    """[p], [p] -> [1]: inner product, a sum over the slice like the gradient itself."""
    vector = direction.value.to(gradient.device)
    return (gradient.to(vector.dtype) @ vector).reshape(1)


@dataclass(frozen=True, kw_only=True)
class GradientNoise(Instrument):
    """How large are the gradients, and how many examples must a batch have before their noise averages out?

    From per-example gradients g_i [n, p] and their mean g: E|g|^2 = |G|^2 + tr(Sigma) / n, so without bias
    |G|^2 = (n |g|^2 - mean |g_i|^2) / (n - 1) and tr(Sigma) = n (mean |g_i|^2 - |g|^2) / (n - 1); the noise
    scale is tr(Sigma) / |G|^2 examples ("simple" in McCandlish et al. 2018). Interval: infinitesimal
    jackknife of its inverse over 16 groups of examples, from g . g_i in a second round.
    Cost: about 8 forwards of n rows. Misleads where dropout or batch statistics add noise in training (eval
    mode here), under optimisers that rescale the gradient, and away from these weights. In a sequence task
    one example is the whole sequence.
    """

    needs = HasTargets & HasParameters & Independent
    how_to_read = (
        "Batches much smaller than the noise scale are mostly noise, much larger ones waste examples. It "
        "grows as training ends, because the mean gradient shrinks and the noise does not; when the sample "
        "is too small to tell a mean gradient from noise, only the signal to noise ratio is given."
    )

    examples: int = 128
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        over = Sample(self.examples, self.seed)
        (ids, squared), total, losses = yield [
            Collect(signals=(rows, example_gradient_norms(loss)), over=over),
            Sum(signals=(gradient(loss, "parameters"),), over=over),
            Moments(signals=(loss,), over=over),
        ]
        n = len(ids)
        if n < 2:
            raise Refusal("noise between examples needs at least two of them")
        if not bool(torch.isfinite(squared).all()):
            raise Refusal("the gradient of an example is not finite")
        answers = losses.count / n  # predictions of an example: gradients are of their mean loss
        floor = 100 * torch.finfo(squared.dtype).eps  # differences below this share are rounding
        squared, mean = squared.double() / answers**2, total / losses.count
        parts = torch.stack([p.square().sum() for p in subject.split_parameters(mean).values()]).cpu()
        size, single = parts.sum(), squared.sum(1)
        signal, noise = _split(size, single.mean(), n)
        if float(noise) <= floor * float(size):
            raise Refusal("all examples have the same gradient: there is no noise to compare with")
        inverse, half = float(signal / noise), None
        count = min(GROUPS, n // 2)
        if count >= 4:
            dot = derive(_along, gradient(loss, "parameters"), Constant(mean))
            groups = [tuple(ids[k::count].tolist()) for k in range(count)]
            dots = yield [Sum(signals=(dot,), over=Rows(group)) for group in groups]
            inner = torch.stack([d[0].cpu() / (len(g) * answers) for d, g in zip(dots, groups, strict=True)])
            own = torch.stack([single[k::count].mean() for k in range(count)])
            # First-order change of the ratio by each group's deviation from the mean of all.
            by_mean, by_single = _split(2 * (inner - size), own - single.mean(), n)
            _, low, high = student((by_mean / noise - signal / noise**2 * by_single).numpy())
            half = (high - low) / 2
        quantities, caveats = _scale(inverse, half, n)
        more, said = _sizes(subject, size, squared)
        tables, figures = _by_tensor(subject, parts, squared)
        logs = single.clamp_min(1e-60).log10() / 2
        edges = torch.linspace(float(logs.min()) - 1e-6, float(logs.max()) + 1e-6, 25, dtype=torch.float64)
        figures["examples"] = histogram(
            "Gradient norm of single examples", torch.histogram(logs, edges).hist.numpy(), edges.numpy(),
            x_title="log10 of the norm",
        )  # fmt: skip
        known = "noise scale" in quantities
        return Finding(
            headline="noise scale" if known else "signal to noise",
            summary=f"Gradient and noise are equally long in batches of about {1 / inverse:.3g} examples."
            if known else f"{n} examples are too few to tell the mean gradient from noise.",
            quantities={**quantities, **more},
            tables=tables,
            figures=figures,
            arrays={"rows": ids.numpy(), "squared_norms": squared.numpy()},
            caveats=(*caveats, *said, *eval_mode(subject)),
        )  # fmt: skip


def _split(mean: Tensor, single: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(|G|^2, tr Sigma) from |g|^2 and the mean of |g_i|^2, both without bias; linear in its arguments."""
    return (n * mean - single) / (n - 1), n * (single - mean) / (n - 1)


def _scale(inverse: float, half: float | None, n: int) -> tuple[dict[str, Quantity], tuple[str, ...]]:
    """The ratio with its interval, turned over where it is positive."""
    if half is None:
        found = {"signal to noise": Quantity(value=inverse, better="higher")}
        if inverse > 0:
            found["noise scale"] = Quantity(value=1 / inverse, unit="examples")
        return found, ()
    low, high = inverse - half, inverse + half
    found = {"signal to noise": Quantity(value=inverse, low=low, high=high, how=HOW, better="higher")}
    if low > 0:
        scale = Quantity(value=1 / inverse, unit="examples", low=1 / high, high=1 / low, how=HOW)
        return found | {"noise scale": scale}, ()
    if inverse > 0:
        found["noise scale"] = Quantity(value=1 / inverse, unit="examples")
    least = f"; it is at least {1 / high:.3g}" if high > 0 else ""
    return found, (f"{n} examples do not bound the noise scale from above{least}",)


def _sizes(subject: Subject, size: Tensor, squared: Tensor) -> tuple[dict[str, Quantity], tuple[str, ...]]:
    """Norms, their spread over examples, and between weight tensors (rms gradient of one weight)."""
    single, unit = squared.sum(1), f"{loss_unit(subject)} / unit of weight"
    top = single.topk(-(-len(single) // 10)).values.sum() / single.sum()
    found = {
        "gradient norm": Quantity(value=float(size.sqrt()), unit=unit),
        "example gradient norm (rms)": Quantity(value=float(single.mean().sqrt()), unit=unit),
        "share of the largest tenth": Quantity(value=float(top)),
    }
    pairs = zip(squared.mean(0), subject.parameters.items(), strict=True)
    rms = {name: float(e / p.numel()) ** 0.5 for e, (name, p) in pairs if p.dim() > 1}
    alive = [v for v in rms.values() if v > 0]
    dead = [k for k, v in rms.items() if v == 0]
    if len(alive) > 1:
        found["first over last layer"] = Quantity(value=alive[0] / alive[-1])
        found["spread between layers"] = Quantity(value=max(alive) / min(alive), better="lower")
    more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
    return found, (f"no gradient reaches {', '.join(dead[:3])}{more}",) if dead else ()


def _by_tensor(
    subject: Subject, parts: Tensor, squared: Tensor
) -> tuple[dict[str, Table], dict[str, Figure]]:
    """One row a parameter tensor."""
    lines = []
    for i, (name, value) in enumerate(subject.parameters.items()):
        signal, noise = _split(parts[i], squared[:, i].mean(), len(squared))
        scale = float(noise / signal) if float(signal) > 0 else None
        lines.append((name, value.numel(), float(parts[i].sqrt()), float(squared[:, i].mean().sqrt()), scale))
    columns = ("tensor", "parameters", "mean gradient", "example gradient (rms)", "noise scale")
    data = [{"tensor": line[0], "norm of": columns[j], "norm": line[j]} for line in lines for j in (2, 3)]
    figure = bars("Gradient norms", data, category="tensor", value="norm", series="norm of", log=True)
    caption = "No noise scale where the sample cannot tell the mean gradient of a tensor from zero."
    return {"tensors": Table(columns=columns, rows=tuple(lines), caption=caption)}, {"tensors": figure}
