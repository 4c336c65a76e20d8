"""Many networks of one architecture, their parameters stacked, trained and read as one batched program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from microtome.errors import UsageError
from microtome.population.program import State

Build = Callable[[], nn.Module]


class Population:
    """N networks: a template, and every parameter and buffer stacked to [N, ...].

    ::

        population = Population.of(lambda: mlp(64, 32, 10), seeds=range(64))
        train(population, x, y, Recipe(optimizer="sgd", rate=0.1, epochs=20, batch_size=32))
        population.predict(x)          # [64, n, 10]
        population.member(3)           # an ordinary nn.Module

    Attributes:
        template: one network; its mode (train or eval) is the mode members train in, its own parameters are not used.
        parameters: name -> [N, ...]; changed in place by training.
        buffers: name -> [N, ...].
        seeds: one a member; what is drawn for a member (its first weights, its order of the data) follows from it.
        masks: parameter name -> [N, ...] of 0 and 1: where 0, a weight is 0 and stays so.
    """

    def __init__(self, members: Sequence[nn.Module], *, seeds: Sequence[int] | None = None) -> None:
        if not members:
            raise UsageError("MT401", "a population needs at least one network", fix="give some")
        states = [dict(m.named_parameters()) for m in members]
        shapes = [{k: v.shape for k, v in s.items()} for s in states]
        other = next((i for i, s in enumerate(shapes) if s != shapes[0]), None)
        if other is not None:
            raise UsageError(
                "MT402",
                f"member {other} has other parameters than member 0",
                fix="give networks of one architecture; for several widths use masks on the widest",
            )
        self.template = copy.deepcopy(members[0])
        self.parameters: State = {
            k: torch.stack([s[k].detach() for s in states]).clone()
            for k in states[0]
            if states[0][k].requires_grad
        }
        frozen = {
            k: torch.stack([s[k].detach() for s in states]) for k in states[0] if k not in self.parameters
        }
        held = [dict(m.named_buffers()) for m in members]
        self.buffers: State = frozen | {k: torch.stack([h[k] for h in held]).clone() for k in held[0]}
        self.seeds = tuple(range(len(members)) if seeds is None else seeds)
        self.masks: State = {}

    @classmethod
    def of(cls, build: Build, seeds: Sequence[int]) -> Population:
        """Build one network a seed; the random state is left as found."""
        with torch.random.fork_rng(devices=[]):
            members = []
            for seed in seeds:
                torch.manual_seed(seed)
                members.append(build())
        return cls(members, seeds=list(seeds))

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __iter__(self) -> Iterator[nn.Module]:
        return (self.member(i) for i in range(len(self)))

    def member(self, index: int) -> nn.Module:
        """One of the networks, as an ordinary module with its own copy of the parameters."""
        made = copy.deepcopy(self.template)
        state = {k: v[index].clone() for k, v in (self.parameters | self.buffers).items()}
        made.load_state_dict(state, strict=False)
        return made

    def copy(self, members: Sequence[int] | Tensor | None = None) -> Population:
        """An independent population of all members, or of some (a member may come more than once)."""
        index = torch.arange(len(self)) if members is None else torch.as_tensor(members)
        made = copy.copy(self)
        made.template = copy.deepcopy(self.template)
        made.parameters = {k: v[index.to(v.device)].clone() for k, v in self.parameters.items()}
        made.buffers = {k: v[index.to(v.device)].clone() for k, v in self.buffers.items()}
        made.masks = {k: v[index.to(v.device)].clone() for k, v in self.masks.items()}
        made.seeds = tuple(self.seeds[i] for i in index.tolist())
        return made

    def to(self, device: torch.device | str) -> Population:
        """Move every member, in place."""
        for held in (self.parameters, self.buffers, self.masks):
            held.update({k: v.to(device) for k, v in held.items()})
        return self

    def scale(self, factor: float | Tensor) -> Population:
        """Multiply all first weights by a number, or one a member [N] (an inflated initialisation)."""
        for p in self.parameters.values():
            p.mul_(factor.reshape(-1, *[1] * (p.dim() - 1)) if isinstance(factor, Tensor) else factor)
        return self

    def mask(self, masks: Mapping[str, Tensor]) -> Population:
        """Set weights to 0 for good where a mask is 0: parameter name -> [...] for all members, or [N, ...].

        Raises:
            UsageError: MT403 for an unknown parameter or a mask that does not fit it.
        """
        for name, mask in masks.items():
            if name not in self.parameters:
                raise UsageError(
                    "MT403", f"there is no parameter '{name}' to mask", fix=", ".join(self.parameters)
                )
            p = self.parameters[name]
            try:
                self.masks[name] = mask.to(p).expand_as(p).clone()
            except RuntimeError:
                raise UsageError(
                    "MT403",
                    f"a mask {list(mask.shape)} does not fit '{name}' {list(p.shape)}",
                    fix="give [N, ...]",
                ) from None
        self.apply_masks()
        return self

    def apply_masks(self) -> None:
        """Set what is masked to 0."""
        for name, mask in self.masks.items():
            self.parameters[name].mul_(mask)

    def predict(self, inputs: Any, *, private: bool = False, batch_size: int | None = None) -> Tensor:
        """What every member answers, in eval mode and without gradients: [N, n, ...].

        Args:
            inputs: [n, ...] for all members, or with ``private`` [N, n, ...].
            batch_size: examples at a time (None: all).
        """
        return self.evaluate(lambda model: model, inputs, private=private, batch_size=batch_size)

    def evaluate(
        self,
        wrap: Callable[[Callable[[Any], Any]], Callable[[Any], Any]],
        inputs: Any,
        *,
        private: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """``wrap`` turns a network (inputs -> outputs) into what is wanted of it: [N, n, ...] for all members."""
        was = self.template.training
        self.template.eval()
        n = inputs.shape[1 if private else 0]
        size = batch_size or n

        def one(parameters: State, buffers: State, given: Any) -> Any:
            return wrap(lambda x: functional_call(self.template, (parameters, buffers), (x,)))(given)

        many = vmap(one, in_dims=(0, 0, 0 if private else None), randomness="different")
        parts = []
        try:
            with torch.no_grad():
                for start in range(0, n, size):
                    cut = inputs[:, start : start + size] if private else inputs[start : start + size]
                    try:
                        parts.append(many(self.parameters, self.buffers, cut))
                    except (RuntimeError, ValueError):  # no batching rule, or a branch on values
                        parts.append(
                            torch.stack(
                                [
                                    one(
                                        {k: v[i] for k, v in self.parameters.items()},
                                        {k: v[i] for k, v in self.buffers.items()},
                                        cut[i] if private else cut,
                                    )
                                    for i in range(len(self))
                                ]
                            )
                        )
        finally:
            self.template.train(was)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def vectors(self) -> Tensor:
        """[N, p] all parameters of each member, flat, in the order of ``parameters``."""
        return torch.cat([p.reshape(len(self), -1) for p in self.parameters.values()], 1)

    def save(self, path: str | Path) -> Path:
        """Write parameters, buffers and masks as safetensors."""
        from safetensors.torch import save_file

        kinds = (("parameters", self.parameters), ("buffers", self.buffers), ("masks", self.masks))
        tensors = {f"{kind}/{k}": v.contiguous() for kind, held in kinds for k, v in held.items()}
        save_file(tensors | {"seeds": torch.tensor(self.seeds)}, str(path))
        return Path(path)

    def load(self, path: str | Path) -> Population:
        """Read what :meth:`save` wrote, in place; the architecture must be the same.

        Raises:
            UsageError: MT404 when it is not.
        """
        from safetensors.torch import load_file

        found = load_file(str(path))
        held = {k.partition("/")[2]: v for k, v in found.items() if k.startswith("parameters/")}
        if {k: v.shape[1:] for k, v in held.items()} != {k: v.shape[1:] for k, v in self.parameters.items()}:
            raise UsageError(
                "MT404",
                "the file holds networks of another architecture",
                where=str(path),
                fix="build the same one",
            )
        self.parameters = {k: held[k] for k in self.parameters}  # a file has an order of its own
        self.buffers = {k: found[f"buffers/{k}"] for k in self.buffers}
        self.masks = {k.partition("/")[2]: v for k, v in found.items() if k.startswith("masks/")}
        self.seeds = tuple(found["seeds"].tolist())
        return self


__all__ = ["Build", "Population"]
