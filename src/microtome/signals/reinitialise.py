"""The same network before it learned anything: the control for what training put into a representation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from microtome.batches import Batch, concatenate, joinable
from microtome.errors import Refusal
from microtome.signals.expression import ParameterChange
from microtome.subject import Subject

CALIBRATION_ROWS = 32


@dataclass(frozen=True)
class Reinitialised(ParameterChange):
    """Parameters drawn anew, as training found them.

    Every module that can reset its parameters does so on a copy of the model. What no module can reset is
    drawn from a normal distribution with the mean and deviation it has now. Batch norm forgets its running
    statistics and takes those of the first 32 examples: left at 0 and 1 it would not normalise at all, and
    an untrained network would look worse than one in training does. Deterministic by ``seed``; the random
    state is left as found.
    """

    seed: int = 0

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Every floating-point parameter and buffer, drawn anew."""
        try:
            model = copy.deepcopy(subject.model).requires_grad_(False)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise Refusal(f"an untrained copy cannot be made: {reason}") from error
        devices = [subject.device] if subject.device.type == "cuda" else []
        reset: set[int] = set()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(self.seed)
            for module in _children_first(model):
                # Recurrent and attention layers of torch reset under other names than the rest.
                again = getattr(module, "reset_parameters", None) or getattr(
                    module, "_reset_parameters", None
                )
                if callable(again):
                    again()
                    reset |= {id(p) for p in module.parameters(recurse=False)}
            for name, value in model.named_parameters():
                if id(value) not in reset and value.is_floating_point() and name in parameters:
                    old = parameters[name].double()
                    spread = float(old.std(correction=0))
                    noise = torch.randn_like(value, dtype=torch.float32)
                    value.copy_(float(old.mean()) + spread * noise)
            _normalise(model, subject)
        return {
            n: t.detach()
            for n, t in [*model.named_parameters(), *model.named_buffers()]
            if t.is_floating_point()
        }


def _normalise(model: nn.Module, subject: Subject) -> None:
    """Give batch norm the statistics of the first examples, however the loader cuts them."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return
    parts: list[Batch] = []
    for batch in subject.batches():
        if parts and not joinable(parts[-1], batch):
            break
        parts.append(batch)
        if sum(len(p) for p in parts) >= CALIBRATION_ROWS or not batch.divisible:
            break
    whole = concatenate(parts)
    whole = whole.take(slice(0, CALIBRATION_ROWS)) if whole.divisible else whole
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain average: of one batch, its own statistics
    with contextlib.suppress(ValueError):  # one value a channel has no variance: the reset statistics stay
        args, kwargs = whole.call()
        model(*args, **kwargs)


def _children_first(model: nn.Module) -> Iterator[nn.Module]:
    """A parent's reset comes last, for it may set what its children have just drawn."""
    return iter(list(model.modules())[::-1])
