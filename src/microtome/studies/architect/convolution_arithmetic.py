"""Sizes of convolutions, pools and transposed convolutions in closed form, and the matrix of a convolution."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.figures import bars
from microtome.interpret.convolution_arithmetic import Window, convolution_matrix, windows
from microtome.study import Measured, Study

FULL = (range(1, 17), range(1, 8), range(1, 5), range(4), (1, 2))
SMALL = (range(1, 7), range(1, 4), range(1, 4), range(2), (1, 2))


def measure(smoke: bool) -> Measured:
    """Every size of the grid against torch; every matrix against torch's convolutions in float64."""
    grid = SMALL if smoke else FULL
    count: Counter[str] = Counter()
    largest = dict.fromkeys(("convolution", "transposed"), 0.0)
    generator = torch.Generator().manual_seed(0)
    for size, *rest in itertools.product(*grid):
        _sizes(size, Window(*rest), count)
        if Window(*rest).fits(size):
            for kind, gap in _matrix(size, Window(*rest), generator).items():
                largest[kind] = max(largest[kind], gap)
    sizes, kernels, strides, paddings, dilations = grid
    for size, output in itertools.product(sizes, repeat=2):
        found = set(
            windows(size, output, kernels=kernels, strides=strides, paddings=paddings, dilations=dilations)
        )
        every = (Window(*rest) for rest in itertools.product(kernels, strides, paddings, dilations))
        right = {w for w in every if _torch_size(size, w) == output}
        count["inverse questions"] += 1
        count["inverse mismatches"] += found != right
    matrix = convolution_matrix(
        torch.randn(1, 1, 3, 3, generator=generator, dtype=torch.float64), (5, 5)
    ).to_dense()
    gap = float((matrix.T @ matrix - torch.eye(25, dtype=torch.float64)).abs().max())
    mismatches = sum(n for name, n in count.items() if "mismatches" in name)
    numbers = {name: float(n) for name, n in sorted(count.items())} | {
        "mismatches": float(mismatches),
        "largest |Cx - conv(x)|": largest["convolution"],
        "largest |C^T y - conv_transpose(y)|": largest["transposed"],
        "largest |C^T C - I| of a 3 x 3 convolution on 5 x 5": gap,
    }
    exact = mismatches == 0 and max(largest.values()) < 1e-12
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else "reproduced" if exact and gap > 0.1 else "not reproduced",
        decided_by=f"{mismatches} mismatches in {count['size questions']} sizes and {count['inverse questions']} "
        f"inverse questions (threshold 0); |Cx - conv(x)| at most {largest['convolution']:.1e}, "
        f"|C^T y - conv_transpose(y)| at most {largest['transposed']:.1e} (threshold 1e-12); |C^T C - I| = {gap:.2g}, "
        "so it is no inverse; without the leftover the formula of the transposed size misses "
        f"{count['sizes missed without the leftover']} of {count['transposed sizes']} (the control: the comparison "
        "can fail)",
        figure=bars(
            "Sizes that the formulas miss, of all that were asked",
            [
                {"formula": name, "missed": numbers.get(f"{name} mismatches", 0.0)}
                for name in ("convolution", "fit", "pool", "inverse", "transposed")
            ]
            + [
                {"formula": "transposed, no leftover", "missed": numbers["sizes missed without the leftover"]}
            ],
            category="formula",
            value="missed",
            value_title="sizes missed",
        ),
    )


def _torch_size(size: int, window: Window) -> int | None:
    x, weight = (torch.empty(1, 1, n, device="meta") for n in (size, window.kernel))
    try:
        return int(F.conv1d(x, weight, None, window.stride, window.padding, window.dilation).shape[2])
    except RuntimeError:
        return None


def _sizes(size: int, window: Window, count: Counter[str]) -> None:
    expected = _torch_size(size, window)
    count["size questions"] += 1
    if expected is None or not window.fits(size):
        count["fit mismatches"] += (expected is None) == window.fits(size)
        return
    count["convolution mismatches"] += window.output(size) != expected
    x = torch.empty(1, 1, size, device="meta")
    k, s, p, d = window.kernel, window.stride, window.padding, window.dilation
    if p <= k // 2:  # more padding torch's pools refuse
        for ceil in (False, True):
            count["size questions"] += 1
            real = F.max_pool1d(x, k, s, p, d, ceil).shape[2]
            count["pool mismatches"] += window.pooled(size, ceil) != real
            if d == 1:
                count["size questions"] += 1
                count["pool mismatches"] += F.avg_pool1d(x, k, s, p, ceil).shape[2] != window.pooled(
                    size, ceil
                )
    weight, y = (torch.empty(1, 1, n, device="meta") for n in (k, expected))
    for leftover in range(max(s, d)):
        claimed = window.transposed(expected, leftover)
        if claimed < 1:
            continue
        count["size questions"] += 1
        count["transposed mismatches"] += (
            F.conv_transpose1d(y, weight, None, s, p, leftover, 1, d).shape[2] != claimed
        )
    count["transposed sizes"] += 1
    count["transposed mismatches"] += window.transposed(expected, window.leftover(size)) != size
    count["sizes missed without the leftover"] += window.transposed(expected) != size


def _matrix(size: int, window: Window, generator: torch.Generator) -> dict[str, float]:
    """Largest differences of C x and C^T y from torch, with 2 channels to 3 along one axis and a second axis."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    s, p, d = (window.stride, 1), (window.padding, 0), (window.dilation, 1)
    weight, x = draw(3, 2, window.kernel, 2), draw(1, 2, size, 3)
    y = F.conv2d(x, weight, None, s, p, d)
    matrix = convolution_matrix(weight, (size, 3), s, p, d)
    other = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    back = F.conv_transpose2d(other, weight, None, s, p, (window.leftover(size), 0), 1, d)
    return {
        "convolution": float((matrix @ x.flatten() - y.flatten()).abs().max()),
        "transposed": float((matrix.t() @ other.flatten() - back.flatten()).abs().max()),
    }


STUDY = Study(
    paper="convolution-arithmetic",
    claim="The sizes of convolutions, pools and transposed convolutions follow in closed form from size, kernel, "
    "stride, padding and dilation, without exception; a transposed convolution is the transposed matrix of the "
    "convolution, with the leftover as output padding, and not its inverse.",
    null="Some setting has another size than the formula says, or a transposed convolution is another "
    "matrix than the transpose.",
    control="Every setting is run through torch itself; the inverse is compared too, and must differ.",
    threshold="No exception over all settings; matrices equal within rounding.",
    measure=measure,
)
