"""One batch in the one form the engine knows, whatever the user's loader yields.

``(x, y)``, ``(a, b, y)``, ``[[a, b], y]``, dicts (Hugging Face style), a bare tensor, and PyTorch Geometric
``Data`` become a :class:`Batch`: what to call the model with, the targets, and which examples these are.
The layout is decided once, on the first batch, and said aloud.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.errors import SubjectError, nearest

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """What one call of the model needs, for ``n`` examples.

    Attributes:
        args, kwargs: the call ``model(*args, **kwargs)``; tensors hold examples along dimension 0.
        targets: [n, ...] or None.
        rows: [n] int64, the ids of these examples: their position in the data.
        pick: [n] int64 or None; which rows of the output are examples (masked nodes of a graph).
        batched: for each leaf of (args, kwargs), whether dimension 0 runs over the examples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Tensor | None
    rows: Tensor
    batched: tuple[bool, ...]
    pick: Tensor | None = None
    site_index: tuple[int, ...] = ()
    """Leaves of (args, kwargs) that hold real numbers, the place where gradients and noise act."""

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def divisible(self) -> bool:
        """Whether its examples can be taken apart (a graph cannot)."""
        return self.pick is None

    def leaves(self) -> list[Any]:
        """All leaves of (args, kwargs) in a fixed order."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    def with_leaves(self, leaves: Sequence[Any], **changes: Any) -> Batch:
        """The same call with other leaves."""
        _, spec = pytree.tree_flatten((self.args, dict(self.kwargs)))
        args, kwargs = pytree.tree_unflatten(list(leaves), spec)
        return replace(self, args=args, kwargs=kwargs, **changes)

    def take(self, index: Tensor | slice) -> Batch:
        """The examples at ``index``, a slice or [m] int64 positions in this batch (they may repeat)."""
        leaves = [
            leaf[index] if on and isinstance(leaf, Tensor) else leaf
            for leaf, on in zip(self.leaves(), self.batched, strict=True)
        ]
        targets = None if self.targets is None else self.targets[index]
        return self.with_leaves(leaves, targets=targets, rows=self.rows[index])

    def bytes(self) -> int:
        """Bytes its tensors hold."""
        tensors = [t for t in [*self.leaves(), self.targets, self.rows] if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        leaves = [leaf.to(device) if hasattr(leaf, "to") else leaf for leaf in self.leaves()]
        targets = None if self.targets is None else self.targets.to(device)
        pick = None if self.pick is None else self.pick.to(device)
        return self.with_leaves(leaves, targets=targets, pick=pick)

    def site(self) -> Tensor | None:
        """The real-valued inputs as one tensor: as it is when there is one leaf, else flattened to [n, d].

        None when the inputs are all integers (token ids); then the embedding's output is the site.
        """
        if not self.site_index:
            return None
        leaves = self.leaves()
        if len(self.site_index) == 1:
            return _site_tensor(leaves[self.site_index[0]])
        return torch.cat([leaves[i].reshape(len(self), -1) for i in self.site_index], dim=1)

    def with_site(self, value: Tensor) -> Batch:
        """The same batch with other real-valued inputs (shape as :meth:`site` gives)."""
        leaves = self.leaves()
        if len(self.site_index) == 1:
            index = self.site_index[0]
            leaves[index] = _replace_site(leaves[index], value)
        else:
            widths = [leaves[i][0].numel() for i in self.site_index]
            for i, part in zip(self.site_index, value.split(widths, dim=1), strict=True):
                leaves[i] = part.reshape(leaves[i].shape)
        return self.with_leaves(leaves)


def _site_tensor(leaf: Any) -> Tensor:
    return leaf if isinstance(leaf, Tensor) else leaf.x


def _replace_site(leaf: Any, value: Tensor) -> Any:
    if isinstance(leaf, Tensor):
        return value
    changed = leaf.clone() if not hasattr(leaf, "__copy__") else leaf.__copy__()
    changed.x = value
    return changed


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of equal layout along the examples."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    columns = zip(*(b.leaves() for b in batches), strict=True)
    leaves = [torch.cat(list(c)) if on else c[0] for c, on in zip(columns, first.batched, strict=True)]
    targets = None if first.targets is None else torch.cat([b.targets for b in batches])  # type: ignore[misc]
    return first.with_leaves(leaves, targets=targets, rows=torch.cat([b.rows for b in batches]))


def joinable(a: Batch, b: Batch) -> bool:
    """Whether two batches can be concatenated (padded batches of different length cannot)."""
    if not (a.divisible and b.divisible):
        return False
    pairs = [*zip(a.leaves(), b.leaves(), a.batched, strict=True), (a.targets, b.targets, True)]
    return all(
        not on or x is None or (x.shape[1:] == y.shape[1:] and x.dtype == y.dtype) for x, y, on in pairs
    )


@dataclass(frozen=True)
class Layout:
    """How to read this loader's batches; found on the first one."""

    kind: str
    """pair, dict, tensor or graph."""
    input_keys: tuple[str, ...] = ()
    """Names passed to the model (dict: keyword arguments, graph: attributes in the order of the signature)."""
    target_key: str | None = None
    unpack: bool = False
    """Whether a list or tuple of inputs is spread over the positional arguments."""
    mask_key: str | None = None
    statement: str = ""
    site_index: tuple[int, ...] = field(default=())

    def read(self, raw: Any, start: int, device: torch.device) -> Batch:
        """Adapt one raw batch whose first example has the id ``start``."""
        pick: Tensor | None = None
        kwargs: dict[str, Any] = {}
        if self.kind == "graph":
            y = getattr(raw, self.target_key) if self.target_key else None
            args = tuple(getattr(raw, k) for k in self.input_keys) if self.input_keys else (raw,)
            if self.mask_key:
                pick = getattr(raw, self.mask_key).nonzero()[:, 0]
            else:
                count = int(y.shape[0]) if y is not None else int(raw.num_nodes)
                pick = torch.arange(count)
            targets = y[pick] if y is not None else None
            batch = Batch(args, {}, targets, pick + start, (), pick)
            batch = replace(batch, batched=tuple(False for _ in batch.leaves()))
        else:
            if self.kind == "dict":
                targets = raw[self.target_key] if self.target_key else None
                kwargs = {k: raw[k] for k in self.input_keys}
                args = ()
            elif self.kind == "tensor":
                args, targets = (raw,), None
            else:
                *inputs, targets = raw
                value = inputs[0] if len(inputs) == 1 else tuple(inputs)
                args = tuple(value) if self.unpack else (value,)
            if targets is not None and not isinstance(targets, Tensor):
                targets = torch.as_tensor(targets)
            batch = Batch(args, kwargs, targets, torch.zeros(0, dtype=torch.long), ())
            leaves = [_as_tensor(leaf) for leaf in batch.leaves()]
            n = _count(leaves, targets)
            batched = tuple(isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == n for leaf in leaves)
            batch = batch.with_leaves(leaves, rows=torch.arange(start, start + n), batched=batched)
        return replace(batch.to(device), site_index=self.site_index)


def _as_tensor(leaf: Any) -> Any:
    import numpy as np

    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _count(leaves: Sequence[Any], targets: Tensor | None) -> int:
    if targets is not None and targets.dim() > 0:
        return int(targets.shape[0])
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if not sizes:
        raise SubjectError("MT201", "a batch holds no tensor with examples along its first dimension")
    return int(sizes[0])


def is_graph(raw: Any) -> bool:
    """Whether it looks like PyTorch Geometric ``Data`` or ``Batch``."""
    return hasattr(raw, "edge_index") and hasattr(raw, "num_nodes")


def find_layout(
    model: torch.nn.Module, raw: Any, inputs: Sequence[str] | None = None, target: str | None = None
) -> Layout:
    """Decide how to read the loader's batches from the first one and the model's signature.

    Args:
        inputs: keys of the model's inputs in dict batches, when the guess would be wrong.
        target: key of the targets.

    Raises:
        SubjectError: MT201 when batch and signature cannot be matched.
    """
    positional, names, open_keywords = _signature(model)
    if is_graph(raw):
        layout = _graph_layout(raw, names, target)
    elif isinstance(raw, Mapping) or hasattr(raw, "keys"):
        keys = list(raw.keys())
        if target is not None and target not in keys:
            raise SubjectError(
                "MT201", f"batches have no key '{target}'", where=f"keys {keys}", fix=nearest(target, keys)
            )
        target_key = target or next((k for k in TARGET_KEYS if k in keys), None)
        chosen = tuple(inputs) if inputs else tuple(
            k for k in keys if k != target_key and (open_keywords or k in names)
        )
        unknown = [k for k in chosen if k not in keys]
        if unknown or not chosen:
            raise SubjectError(
                "MT201",
                f"the loader yields {{{', '.join(map(str, keys))}}}, forward takes ({', '.join(names)})",
                fix="name them: inputs=['...'], target='...' (--inputs, --target)",
            )
        layout = Layout("dict", chosen, target_key, statement=_say_dict(chosen, target_key))
    elif isinstance(raw, Tensor):
        layout = Layout("tensor", statement="batches are bare tensors: no targets")
    elif isinstance(raw, (tuple, list)) and len(raw) >= 2:
        first = raw[0] if len(raw) == 2 else tuple(raw[:-1])
        spread = isinstance(first, (tuple, list)) and (positional is None or positional != 1)
        count = len(first) if spread else 1
        layout = Layout("pair", unpack=spread, statement=f"batches are ({count} input{'s' * (count > 1)}, targets)")
    elif isinstance(raw, (tuple, list)) and len(raw) == 1 and isinstance(raw[0], Tensor):
        raise SubjectError("MT201", "batches are one-element tuples", fix="yield the tensor itself, or (x, y)")
    else:
        raise SubjectError(
            "MT201",
            f"a batch is a {type(raw).__name__}",
            fix="yield (x, y), a dict, a tensor, or PyTorch Geometric data",
        )
    probe = layout.read(raw, 0, torch.device("cpu"))
    return replace(layout, site_index=_real_leaves(probe))


def _real_leaves(batch: Batch) -> tuple[int, ...]:
    if not batch.divisible:
        leaves = batch.leaves()
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return (i,)
            if is_graph(leaf) and getattr(leaf, "x", None) is not None and leaf.x.is_floating_point():
                return (i,)
        return ()
    # Integer inputs beside real ones (token ids with a float mask) make the embedding the site.
    leaves = batch.leaves()
    on = [i for i, leaf in enumerate(leaves) if batch.batched[i] and isinstance(leaf, Tensor)]
    real = tuple(i for i in on if leaves[i].is_floating_point())
    first_is_integer = bool(on) and not leaves[on[0]].is_floating_point()
    return () if first_is_integer else real


def _say_dict(chosen: Sequence[str], target_key: str | None) -> str:
    targets = f"targets '{target_key}'" if target_key else "no targets"
    return f"batches are dicts: inputs {', '.join(chosen)}; {targets}"


def _graph_layout(raw: Any, names: Sequence[str], target: str | None) -> Layout:
    keys = raw.keys() if callable(raw.keys) else raw.keys
    target_key = target or ("y" if getattr(raw, "y", None) is not None else None)
    required = [n for n in names if n in keys]
    inputs = tuple(required) if required else ()
    mask = None
    y = getattr(raw, target_key) if target_key else None
    if y is not None and y.shape[0] == raw.num_nodes and getattr(raw, "batch", None) is None:
        mask = next((m for m in ("test_mask", "val_mask", "train_mask") if getattr(raw, m, None) is not None), None)
    call = ", ".join(inputs) if inputs else "the data object"
    on = f"; examples are the nodes of {mask}" if mask else ""
    return Layout("graph", inputs, target_key, mask_key=mask, statement=f"batches are graphs: model({call}){on}")


def _signature(model: torch.nn.Module) -> tuple[int | None, list[str], bool]:
    """Required positional arguments (None when open), all names, and whether any keyword is taken."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None, [], True
    kinds = inspect.Parameter
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return None, [p.name for p in parameters], True
    plain = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    required = [p for p in plain if p.default is kinds.empty]
    open_keywords = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters if p.kind is not kinds.VAR_KEYWORD]
    return max(len(required), 1), names, open_keywords


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into pieces of at most ``size`` examples."""
    if not batch.divisible or len(batch) <= size:
        yield batch
        return
    for start in range(0, len(batch), size):
        yield batch.take(slice(start, start + size))
