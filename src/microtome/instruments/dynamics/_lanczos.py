"""Lanczos for several start vectors side by side; whoever uses it supplies the products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 64 << 20
"""Bytes of vectors to keep as they are."""
COLUMNS = 1 << 15
"""Entries of all vectors to work on at a time: they stay in the cache while they are widened and used."""


@dataclass(frozen=True)
class Spectrum:
    """What k tridiagonal matrices say of one operator."""

    values: Tensor
    """[r] Ritz values of all probes, float64."""
    weights: Tensor
    """[r] quadrature weights, 1 in sum."""
    largest: Tensor
    """[m] the i-th largest Ritz value, from the probe that has it largest (Ritz values lie below)."""
    bounds: Tensor
    """[m] |A y - theta y| of each: some eigenvalue is at most this far."""
    least: float
    least_bound: float

    def density(self, points: int) -> tuple[Tensor, Tensor]:
        """(grid [points], density [points]): every node a normal curve of 1 % of the range."""
        low, high = float(self.values.min()), float(self.values.max())
        width = 0.01 * (high - low) or 0.01 * abs(high) or 1e-6
        grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
        curves = torch.exp(-0.5 * ((grid[:, None] - self.values) / width).square())
        return grid, curves @ self.weights / (width * (2 * torch.pi) ** 0.5)


class Lanczos:
    """The symmetric Lanczos process, probe by probe with the same number of products.

    While ``k m p`` numbers fit into ``keep`` bytes every new vector is made orthogonal to all before it, twice;
    otherwise only to the last two, and copies of converged values are merged at the end. Beyond ``EXACT`` bytes the
    vectors before the last two are kept in half precision, scaled by sqrt(p): what they take off a new one is
    rounding error, and semi-orthogonality, to the root of eps, is all that Ritz values need (Simon 1984). For the
    same reason they are taken off in the start vectors' own precision, the last two in float64.

    Args:
        start: [k, p] vectors of length 1, in the dtype in which products are taken.
        steps: m, at most p.
        keep: bytes.
        precision: relative rounding of the products, by default that of the start vectors.
    """

    def __init__(self, start: Tensor, steps: int, keep: int, precision: float | None = None) -> None:
        k, p = start.shape
        self.steps, self.precision = steps, precision or torch.finfo(start.dtype).eps
        size = k * p * steps * start.element_size()
        stored = start.dtype if size <= EXACT else torch.float16
        self.whole = size * stored.itemsize // start.element_size() <= keep
        self.vectors: Tensor | None = start
        """[a, p] what to multiply next, one row a probe that still goes on; None when all are done."""
        self._active = list(range(k))
        self._unit, self._stored = p**0.5, stored
        self._basis: list[Tensor] = [start.new_empty(0, p, dtype=stored) for _ in start]
        self._kept = [0] * k
        self._last: list[list[Tensor]] = [[] for _ in start]
        self._alpha: list[list[float]] = [[] for _ in start]
        self._beta: list[list[float]] = [[] for _ in start]
        self._size = 0.0
        self._rest: Tensor | None = None

    def advance(self, products: Tensor, scale: float = 1.0) -> None:
        """Take ``scale`` x operator x :attr:`vectors` ([a, p], float64) and find the next."""
        assert self.vectors is not None
        following = torch.empty_like(self.vectors)
        going: list[int] = []
        for probe, vector, product in zip(self._active, self.vectors, products, strict=True):
            alpha, beta = self._alpha[probe], self._beta[probe]
            self._last[probe].append(vector)
            rest = self._orthogonal(probe, product, scale)
            # Below this the vector is rounding error: the start vector's invariant space is used up.
            if len(alpha) < self.steps and beta[-1] > self.precision**0.75 * self._size:
                torch.mul(rest, 1 / beta[-1], out=following[len(going)])
                going.append(probe)
        self._active = going
        self.vectors = following[: len(going)] if going else None
        self._rest = None  # not held while the next products are taken

    def _orthogonal(self, probe: int, product: Tensor, scale: float) -> Tensor:
        """[p] what is left of a product beside the vectors so far; notes alpha and beta and keeps what is due.

        Gram and Schmidt's process twice, for all vectors at once, in three sweeps over the columns.
        """
        last, kept = self._last[probe], self._kept[probe]
        unit, coarse = self._unit, last[-1].dtype
        if self._rest is None:
            self._rest = torch.empty_like(last[-1], dtype=torch.float64)
        rest = self._rest
        keeping = len(last) == 2 and self.whole
        if keeping and not len(self._basis[probe]):
            self._basis[probe] = self._basis[probe].new_empty(self.steps, len(rest))
        basis = self._basis[probe][:kept]
        near, far = rest.new_zeros(3, len(last)), rest.new_zeros(3, kept)
        length = rest.new_zeros(3)
        for sweep in range(3):
            for start in range(0, len(rest), COLUMNS):
                columns = slice(start, start + COLUMNS)
                piece = rest[columns]
                recent = torch.stack([v[columns] for v in last]).double()
                earlier = basis[:, columns].to(coarse)
                if sweep == 0:
                    torch.mul(product[columns].to(piece), scale, out=piece)
                else:
                    piece -= near[sweep - 1] @ recent
                    if kept:
                        piece -= (far[sweep - 1].to(coarse) @ earlier) / unit
                if sweep < 2:
                    near[sweep] += recent @ piece
                    if kept:
                        far[sweep] += (earlier @ piece.to(coarse)) / unit
                elif keeping:
                    self._basis[probe][kept, columns] = last[0][columns] * unit
                length[sweep] += piece.square().sum()
        self._size = max(self._size, math.sqrt(float(length[0])))
        self._alpha[probe].append(float(near[0, -1]))
        self._beta[probe].append(math.sqrt(float(length[2])))
        if len(last) == 2:
            last.pop(0)
            self._kept[probe] += keeping
        return rest

    def spectrum(self) -> Spectrum:
        """Read the tridiagonal matrices."""
        probes = [self._read(probe) for probe in range(len(self._alpha))]
        scale = max(float(v.abs().max()) for v, _, _ in probes)
        floor = 16 * self.precision * scale  # products are no better than this
        largest, bounds = [], []
        for i in range(max(len(v) for v, _, _ in probes)):
            theta, bound = max((float(v[-1 - i]), -float(r[-1 - i])) for v, _, r in probes if len(v) > i)
            largest.append(theta)
            bounds.append(floor - bound)
        least, slack = min((float(v[0]), float(r[0])) for v, _, r in probes)
        return Spectrum(
            values=torch.cat([v for v, _, _ in probes]),
            weights=torch.cat([w for _, w, _ in probes]) / len(probes),
            largest=torch.tensor(largest, dtype=torch.float64),
            bounds=torch.tensor(bounds, dtype=torch.float64),
            least=least,
            least_bound=slack + floor,
        )

    def converged(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """(values [c], unit vectors [c, p]) of the first probe whose residual is small beside the value.

        None of them when the basis was not kept.
        """
        values, vectors = torch.linalg.eigh(self._matrix(0))
        good = self._beta[0][-1] * vectors[-1].abs() <= tolerance * values.abs()
        recent = self._last[0]
        if not self.whole or not bool(good.any()):
            return values[:0], recent[-1].new_zeros(0, len(recent[-1]))
        chosen = vectors[:, good].T.to(recent[-1])
        found = chosen.new_empty(len(chosen), len(recent[-1]))
        basis, kept = self._basis[0], self._kept[0]
        for start in range(0, found.shape[1], COLUMNS):
            columns = slice(start, start + COLUMNS)
            found[:, columns] = chosen[:, kept:] @ torch.stack([v[columns] for v in recent])
            found[:, columns] += chosen[:, :kept] @ basis[:kept, columns].to(found.dtype) / self._unit
        return values[good], found

    def _matrix(self, probe: int) -> Tensor:
        off = torch.tensor(self._beta[probe][:-1], dtype=torch.float64)
        middle = torch.tensor(self._alpha[probe], dtype=torch.float64)
        return torch.diag(middle) + torch.diag(off, 1) + torch.diag(off, -1)

    def _read(self, probe: int) -> tuple[Tensor, Tensor, Tensor]:
        """(Ritz values ascending, weights, residuals) of one probe."""
        values, vectors = torch.linalg.eigh(self._matrix(probe))
        weights, residuals = vectors[0].square(), self._beta[probe][-1] * vectors[-1].abs()
        if self.whole:
            return values, weights, residuals
        kept: list[tuple[float, float, float]] = []
        near = 1e-5 * float(values.abs().max())
        for value, weight, residual in torch.stack([values, weights, residuals], dim=1).tolist():
            if kept and value - kept[-1][0] <= near:
                old = kept.pop()
                weight, residual = weight + old[1], min(residual, old[2])
            kept.append((value, weight, residual))
        columns = torch.tensor(kept, dtype=torch.float64)
        return columns[:, 0], columns[:, 1], columns[:, 2]
