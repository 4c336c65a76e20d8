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

from microtome.errors import Refusal, SubjectError, nearest
from microtome.structure import Structure, read_structure

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """What one call of the model needs, for ``n`` examples.

    Attributes:
        args, kwargs: what the model is called with, see :meth:`call`; examples along dimension 0.
        targets: [n, ...] or None.
        rows: [n] int64, the ids of these examples: their position in the data.
        batched: for each leaf of (args, kwargs), whether dimension 0 runs over the examples.
        whole: whether its examples cannot be taken apart (a graph).
        pick: [n] int64 or None; which rows of the output are examples (masked nodes of a graph).
        moved: leaves whose examples run along dimension 1 when the model is called.
        copied: whether the model writes into its inputs, so that it is called with copies.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Tensor | None
    rows: Tensor
    batched: tuple[bool, ...]
    whole: bool = False
    pick: Tensor | None = None
    moved: tuple[int, ...] = ()
    copied: bool = False
    site_index: tuple[int, ...] = ()
    """Leaves of (args, kwargs) that hold real numbers, the place where gradients and noise act."""
    structure: Structure | None = None
    """The graph, where the data is one."""

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def divisible(self) -> bool:
        """Whether its examples can be taken apart (those of a graph cannot)."""
        return not self.whole

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``model(*args, **kwargs)``."""
        if not self.moved and not self.copied:
            return self.args, dict(self.kwargs)
        leaves = self.leaves()
        for i in self.moved:
            leaves[i] = leaves[i].movedim(0, 1)
        if self.copied:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) or is_graph(leaf) else leaf for leaf in leaves]
        called = self.with_leaves(leaves)
        return called.args, dict(called.kwargs)

    def leaves(self) -> list[Any]:
        """All leaves of (args, kwargs) in a fixed order."""
        if self._plain:
            return list(self.args)
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    @property
    def _plain(self) -> bool:
        """Whether the call is of tensors and nothing else, as most are."""
        return not self.kwargs and all(isinstance(a, Tensor) for a in self.args)

    def with_leaves(self, leaves: Sequence[Any], **changes: Any) -> Batch:
        """The same call with other leaves."""
        if self._plain:
            return replace(self, args=tuple(leaves), **changes)
        _, spec = pytree.tree_flatten((self.args, dict(self.kwargs)))
        args, kwargs = pytree.tree_unflatten(list(leaves), spec)
        return replace(self, args=args, kwargs=kwargs, **changes)

    def take(self, index: Tensor | slice) -> Batch:
        """The examples at ``index``, a slice or [m] int64 positions in this batch (they may repeat).

        Of a graph the whole remains and fewer of its examples are looked at.
        """
        if self.whole:
            pick = torch.arange(len(self), device=self._device) if self.pick is None else self.pick
            where = index if isinstance(index, slice) else index.to(pick.device)
            targets = None if self.targets is None else self.targets[where]
            structure = self.structure
            if structure is not None:
                structure = replace(structure, examples=structure.examples[where])
            return replace(
                self, targets=targets, rows=self.rows[index], pick=pick[where], structure=structure
            )
        leaves = [
            leaf[index] if on and isinstance(leaf, Tensor) else leaf
            for leaf, on in zip(self.leaves(), self.batched, strict=True)
        ]
        targets = None if self.targets is None else self.targets[index]
        return self.with_leaves(leaves, targets=targets, rows=self.rows[index])

    @property
    def _device(self) -> torch.device:
        tensors = (leaf if isinstance(leaf, Tensor) else getattr(leaf, "x", None) for leaf in self.leaves())
        return next((t.device for t in tensors if isinstance(t, Tensor)), self.rows.device)

    def bytes(self) -> int:
        """Bytes its tensors hold."""
        tensors = [t for t in [*self.leaves(), self.targets, self.rows] if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        leaves = [leaf.to(device) if hasattr(leaf, "to") else leaf for leaf in self.leaves()]
        targets = None if self.targets is None else self.targets.to(device)
        pick = None if self.pick is None else self.pick.to(device)
        structure = None if self.structure is None else self.structure.to(device)
        return self.with_leaves(leaves, targets=targets, pick=pick, structure=structure)

    def tokens(self) -> Tensor | None:
        """[n, l] token ids: the first integer input that is a sequence; None without one."""
        for leaf, on in zip(self.leaves(), self.batched, strict=True):
            if (
                on
                and isinstance(leaf, Tensor)
                and leaf.dim() == 2
                and leaf.dtype in (torch.int32, torch.int64)
            ):
                return leaf
        return None

    def site(self) -> Tensor | None:
        """The real-valued inputs as one tensor: as it is when there is one leaf, else flattened to [n, d].

        None when the inputs are all integers (token ids); then the embedding's output is the site.
        """
        if not self.site_index:
            return None
        leaves = self.leaves()
        if len(self.site_index) == 1:
            return site_tensor(leaves[self.site_index[0]])
        # Not as many rows as examples are looked at: of a batch that stays whole only some are.
        return torch.cat([leaves[i].reshape(len(leaves[i]), -1) for i in self.site_index], dim=1)

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

    def with_edges(self, edge_index: Tensor, origin: Tensor) -> Batch:
        """The same graph with other edges.

        Args:
            edge_index: [2, m] the new edges.
            origin: [m] int64, for each the old edge whose weight and attributes it takes.

        Raises:
            Refusal: when the batch is no graph, or the network is given no ``edge_index``.
        """
        structure = self.structure
        if structure is None:
            raise Refusal("the data is no graph")
        old = structure.edge_index.shape[1]
        leaves, found = self.leaves(), False
        for i, leaf in enumerate(leaves):
            if is_graph(leaf):
                changed = leaf.__copy__()
                for key in leaf.edge_attrs():
                    if key != "edge_index":
                        changed[key] = leaf[key][origin]
                changed.edge_index, leaves[i], found = edge_index, changed, True
            elif leaf is structure.edge_index or (
                isinstance(leaf, Tensor) and leaf.shape == (2, old) and not leaf.is_floating_point()
            ):
                leaves[i], found = edge_index, True
            elif isinstance(leaf, Tensor) and i < len(structure.names):
                named = structure.names[i].startswith("edge") and leaf.dim() and leaf.shape[0] == old
                leaves[i] = leaf[origin] if named else leaf
        if not found:
            raise Refusal("the network is not given an edge_index that could be changed")
        return self.with_leaves(leaves)


def site_tensor(leaf: Any) -> Tensor:
    """The real numbers of a leaf: itself, or the node features of a graph object."""
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
    if a.batched != b.batched:
        return False
    pairs = [*zip(a.leaves(), b.leaves(), a.batched, strict=True), (a.targets, b.targets, True)]
    return all(_alike(x, y, on) for x, y, on in pairs)


def _alike(x: Any, y: Any, batched: bool) -> bool:
    if x is y:
        return True
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return type(x) is type(y) and bool(x == y)
    if x.dtype != y.dtype:
        return False
    # What all examples of a batch share must be the same in both.
    return x.shape[1:] == y.shape[1:] if batched else torch.equal(x, y)


@dataclass(frozen=True)
class Layout:
    """How to read this loader's batches; found on the first one."""

    kind: str
    """pair, dict, tensor or graph."""
    input_keys: tuple[str, ...] = ()
    """Names passed to the model: keyword arguments, or attributes of a graph in the signature's order."""
    target_key: str | None = None
    unpack: bool = False
    """Whether a list, tuple or dict of inputs is spread over the arguments."""
    mask_key: str | None = None
    per_graph: bool = False
    """Whether an example is a graph, not a node."""
    target_argument: str | None = None
    """The model's argument that is given the targets, when it answers at every position only with them."""
    copied: bool = False
    """Whether the model writes into its inputs."""
    whole: bool = False
    """Whether examples reach one another, so that batches stay as the loader cut them."""
    statement: str = ""
    site_index: tuple[int, ...] = field(default=())

    def read(self, raw: Any, start: int, device: torch.device) -> Batch:
        """Adapt one raw batch whose first example has the id ``start``."""
        if self.kind == "graph":
            return self._read_graph(raw, start, device)
        targets: Any
        value: Any
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if self.kind == "dict":
            targets = raw[self.target_key] if self.target_key else None
            kwargs = {k: raw[k] for k in self.input_keys}
        elif self.kind == "tensor":
            args, targets = (raw,), None
        else:
            *inputs, targets = raw
            if self.target_key is not None:
                targets = targets[self.target_key]
            value = inputs[0] if len(inputs) == 1 else tuple(inputs)
            if self.input_keys:
                kwargs = {k: value[k] for k in self.input_keys}
            else:
                args = tuple(value) if self.unpack else (value,)
        if targets is not None and not isinstance(targets, Tensor):
            targets = _target_tensor(targets)
        if self.target_argument is not None:
            kwargs = {**kwargs, self.target_argument: targets}
        batch = Batch(args, kwargs, targets, torch.zeros(0, dtype=torch.long), ())
        leaves = [_as_tensor(leaf) for leaf in batch.leaves()]
        if any(isinstance(leaf, Tensor) and leaf.layout is not torch.strided for leaf in leaves):
            raise SubjectError(
                "MT201",
                "inputs are sparse tensors, which cannot be cut into examples",
                fix="give x.to_dense(), and a network that takes it",
            )
        n = _count(leaves, targets)
        batched = [isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == n for leaf in leaves]
        moved: tuple[int, ...] = ()
        if not any(batched):
            second = [isinstance(leaf, Tensor) and leaf.dim() > 1 and leaf.shape[1] == n for leaf in leaves]
            moved = tuple(i for i, on in enumerate(second) if on)
            leaves = [leaf.movedim(1, 0) if on else leaf for leaf, on in zip(leaves, second, strict=True)]
            batched = second
        if n and not any(batched):
            shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor))
            raise SubjectError(
                "MT201",
                f"there are {n} targets, and no input has {n} examples",
                where=f"inputs {shapes or 'none'}",
                fix="give as many targets as inputs, examples along the first dimension",
            )
        batch = batch.with_leaves(
            leaves,
            rows=torch.arange(start, start + n),
            batched=tuple(batched),
            whole=self.whole,
            moved=moved,
            copied=self.copied,
        )
        return replace(batch.to(device), site_index=self.site_index)

    def _read_graph(self, raw: Any, start: int, device: torch.device) -> Batch:
        raw = as_graph(raw)
        args = tuple(getattr(raw, k) for k in self.input_keys) if self.input_keys else (raw,)
        targets = getattr(raw, self.target_key) if self.target_key else None
        pick: Tensor | None = None
        seeds = _seeds(raw)
        if self.per_graph:
            count = int(getattr(raw, "num_graphs", 1))
        elif seeds is not None:
            # A sampled batch: the nodes it was sampled for come first, the others are their neighbours.
            pick, count = torch.arange(seeds), seeds
            targets = None if targets is None else targets[:seeds]
        elif self.mask_key:
            pick = getattr(raw, self.mask_key).nonzero()[:, 0]
            count = len(pick)
            targets = None if targets is None else targets[pick]
        else:
            count = int(raw.num_nodes)
        batch = Batch(
            args,
            {},
            targets,
            torch.arange(start, start + count),
            (),
            whole=True,
            pick=pick,
            copied=self.copied,
            structure=read_structure(
                raw, names=self.input_keys, target=self.target_key, per_graph=self.per_graph, pick=pick,
                start=start,
            ),
        )  # fmt: skip
        batch = replace(batch, batched=tuple(False for _ in batch.leaves()))
        return replace(batch.to(device), site_index=self.site_index)


def _seeds(raw: Any) -> int | None:
    """How many nodes a batch of sampled neighbourhoods was sampled for; None for other batches."""
    count = getattr(raw, "batch_size", None)
    sampled = getattr(raw, "n_id", None) is not None or getattr(raw, "input_id", None) is not None
    return int(count) if sampled and isinstance(count, int) else None


def _as_tensor(leaf: Any) -> Any:
    import numpy as np

    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _target_tensor(targets: Any) -> Tensor:
    """Targets as numbers.

    Raises:
        SubjectError: MT201.
    """
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        held = type(targets).__name__
        if isinstance(targets, (list, tuple)) and targets:
            held += f" of {type(targets[0]).__name__}"
        raise SubjectError(
            "MT201",
            f"the targets of a batch are a {held}, not numbers",
            fix="let the loader give them as a tensor: class numbers, or values",
        ) from error


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


def as_graph(raw: Any) -> Any:
    """A dictionary that holds a graph, as the object PyTorch Geometric makes of it; all else as it is."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("x"), Tensor):
        return raw
    edges = raw.get("edge_index")
    if not isinstance(edges, Tensor) or edges.dim() != 2 or len(edges) != 2 or edges.is_floating_point():
        return raw
    try:
        from torch_geometric.data import Data
    except ImportError:
        return raw
    graph = Data.from_dict(dict(raw))
    batch = raw.get("batch")
    if isinstance(batch, Tensor) and len(batch):
        graph.num_graphs = int(batch.max()) + 1
    return graph


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
    signature = Signature.of(model)
    if hasattr(raw, "node_types") and hasattr(raw, "edge_types"):
        raise SubjectError(
            "MT201",
            f"a batch is a graph with several kinds of nodes ({', '.join(map(str, raw.node_types))}) or edges",
            fix="wrap the network in a module that is given one kind's features as a tensor and holds the rest",
        )
    if is_graph(as_graph(raw)) and not (isinstance(raw, Mapping) and inputs):
        if isinstance(raw, Mapping):
            target = target or next((k for k in TARGET_KEYS if k in raw), None)
        layout = _graph_layout(as_graph(raw), signature.names, target)
    elif isinstance(raw, Mapping) or hasattr(raw, "keys"):
        keys = list(raw.keys())
        if target is not None and target not in keys:
            raise SubjectError(
                "MT201", f"batches have no key '{target}'", where=f"keys {keys}", fix=nearest(target, keys)
            )
        target_key = target or next((k for k in TARGET_KEYS if k in keys), None)
        chosen = tuple(inputs) if inputs else signature.takes([k for k in keys if k != target_key])
        unknown = [k for k in chosen if k not in keys]
        if unknown or not chosen:
            raise SubjectError(
                "MT201",
                f"the loader yields {{{', '.join(map(str, keys))}}}, "
                f"forward takes ({', '.join(signature.names)})",
                fix="name them: inputs=['...'], target='...' (--inputs, --target)",
            )
        layout = Layout("dict", chosen, target_key, statement=_say_dict(chosen, target_key))
    elif isinstance(raw, Tensor):
        layout = Layout("tensor", statement="batches are bare tensors: no targets")
    elif isinstance(raw, (tuple, list)) and len(raw) >= 2:
        layout = _pair_layout(raw, signature, target)
    elif isinstance(raw, (tuple, list)) and len(raw) == 1 and isinstance(raw[0], Tensor):
        raise SubjectError(
            "MT201", "batches are one-element tuples", fix="yield the tensor itself, or (x, y)"
        )
    else:
        raise SubjectError(
            "MT201",
            f"a batch is a {type(raw).__name__}",
            fix="yield (x, y), a dict, a tensor, or PyTorch Geometric data",
        )
    return with_site_index(layout, raw)


def with_site_index(layout: Layout, raw: Any) -> Layout:
    """The layout, knowing which leaves hold real numbers."""
    return replace(layout, site_index=_real_leaves(layout.read(raw, 0, torch.device("cpu"))))


def _pair_layout(raw: Sequence[Any], signature: Signature, target: str | None) -> Layout:
    *inputs, targets = raw
    target_key, named = None, "targets"
    if isinstance(targets, Mapping):
        held = list(targets)
        target_key = target or next((k for k in TARGET_KEYS if k in held), None)
        if target_key is None or target_key not in held:
            raise SubjectError(
                "MT201",
                f"targets come as a dictionary with the keys {', '.join(map(str, held))}",
                fix="name the one to answer: target='...' (--target)",
            )
        named = f"targets '{target_key}'"
    if isinstance(targets, (bool, int, float, str)) or (isinstance(targets, Tensor) and targets.dim() == 0):
        raise SubjectError(
            "MT201",
            "the data yields single examples, not batches",
            where="the target of the first is one number",
            fix="wrap it: torch.utils.data.DataLoader(data, batch_size=64)",
        )
    first = inputs[0] if len(inputs) == 1 else tuple(inputs)
    if isinstance(first, Mapping) and signature.many:
        keys = signature.takes(list(first))
        if keys:
            words = f"batches are ({{inputs {', '.join(sorted(keys))}}}, {named})"
            return Layout("pair", keys, target_key, statement=words)
    spread = isinstance(first, (tuple, list)) and signature.many
    count = len(first) if spread else 1
    words = f"batches are ({count} input{'s' * (count > 1)}, {named})"
    return Layout("pair", target_key=target_key, unpack=spread, statement=words)


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
    keys = list(raw.keys() if callable(raw.keys) else raw.keys)
    if target is not None and target not in keys:
        raise SubjectError(
            "MT201", f"graphs have no '{target}'", where=f"they have {keys}", fix=nearest(target, keys)
        )
    target_key = target or ("y" if getattr(raw, "y", None) is not None else None)
    inputs = tuple(n for n in names if n in keys)
    y = getattr(raw, target_key) if target_key else None
    graphs, nodes = int(getattr(raw, "num_graphs", 1)), int(raw.num_nodes)
    per_graph = isinstance(y, Tensor) and y.dim() > 0 and y.shape[0] == graphs != nodes
    mask = None
    if not per_graph and y is not None:
        if not isinstance(y, Tensor) or y.dim() == 0 or y.shape[0] != nodes:
            shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise SubjectError(
                "MT202",
                f"targets {shape} are neither one a node ({nodes}) nor one a graph ({graphs})",
                where=target_key or "",
                fix="name the target: target='...' (--target)",
            )
        mask = next(
            (m for m in ("test_mask", "val_mask", "train_mask") if getattr(raw, m, None) is not None), None
        )
    sampled = not per_graph and _seeds(raw) is not None
    call = ", ".join(inputs) if inputs else "the data object"
    on = (
        "examples are graphs"
        if per_graph
        else "examples are the nodes whose neighbourhoods were sampled"
        if sampled
        else f"examples are the nodes of {mask}"
        if mask
        else "examples are nodes"
    )
    return Layout(
        "graph",
        inputs,
        target_key,
        mask_key=None if sampled else mask,
        per_graph=per_graph,
        statement=f"batches are graphs: model({call}); {on}",
    )


@dataclass(frozen=True)
class Signature:
    """What a model's forward takes."""

    names: tuple[str, ...]
    many: bool
    """Whether it takes more than one argument."""
    open_keywords: bool

    @classmethod
    def of(cls, model: torch.nn.Module) -> Signature:
        """Read it off ``model.forward``."""
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return cls((), True, True)
        kinds = inspect.Parameter
        open_positions = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        named = tuple(p.name for p in parameters if p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL))
        open_keywords = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        return cls(named, open_positions or len(named) > 1, open_keywords)

    def takes(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Those of ``keys`` it can be given: by its own names, or all when it names none of them."""
        named = tuple(k for k in keys if k in self.names)
        return named if named or not self.open_keywords else tuple(keys)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into pieces of at most ``size`` examples."""
    if not batch.divisible or len(batch) <= size:
        yield batch
        return
    for start in range(0, len(batch), size):
        yield batch.take(slice(start, start + size))
