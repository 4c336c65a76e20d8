"""Weights in files: reading them without running anything, fitting them to a network, converting pickles.

A ``.pt`` file is a pickle, and a pickle is a program. Nothing here runs one unless the caller says
``trust=True``: files are read by ``torch.load(weights_only=True)``, and a file that needs more is refused
with the names of what it would call, read off the pickle without executing it.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import UsageError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
WEIGHT_FILES = (".safetensors", *PICKLES)

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "ema")
"""Where training scripts usually put the weights inside a checkpoint."""

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
"""Prefixes that wrappers leave: DataParallel, torch.compile, Lightning modules."""


# ------------------------------------------------------------------------------------------------ reading


def existing_file(path: str | Path, what: str) -> Path:
    """Return the path if it is a file; otherwise an error that names the files close to it.

    Raises:
        UsageError: MT100, nothing is there.
    """
    found = Path(path).expanduser()
    if found.is_file():
        return found
    folder = found.parent
    neighbours = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    problem = "is a folder, not a file" if found.is_dir() else "does not exist"
    raise UsageError(
        "MT100",
        f"{what} '{path}' {problem}",
        where=str(folder.resolve()),
        fix=nearest(found.name, neighbours) or "check the path",
    )


def pickle_calls(data: bytes) -> set[str]:
    """Names of what unpickling would call beyond tensors, read off without running any of it."""
    import torch

    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except (ValueError, RuntimeError):
        pass  # not torch.save's zip format: look at the pickle itself
    names: set[str] = set()
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                names.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        pass  # truncated or not a pickle: report what was seen
    harmless = ("torch._utils._rebuild", "torch.FloatStorage", "collections.OrderedDict")
    return {name for name in names if not name.startswith(harmless)}


def _refuse_pickle(path: Path, names: Iterable[str]) -> UsageError:
    listed = sorted(names)
    calls = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    return UsageError(
        "MT103",
        f"refused: unpickling {path.name} would call {calls or 'code other than tensors'}",
        where=str(path),
        fix=f"if you made this file yourself, run `microtome convert {path.name} {path.stem}.safetensors "
        f"--trust-pickle` once, or pass --trust-pickle; otherwise ask its author for safetensors",
    )


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive (it holds source code of its own)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())


def read_checkpoint(path: str | Path, *, trust: bool = False) -> Any:
    """Read whatever the file holds, on the CPU.

    Args:
        path: a ``.safetensors`` file, or a pickle written by ``torch.save``.
        trust: run the pickle even if it calls more than tensors. Only for files you made yourself.

    Raises:
        UsageError: MT100 no such file, MT103 the pickle needs trust, MT105 the file cannot be read.
    """
    import torch

    file = existing_file(path, "weights file")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(file))
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(
                "MT105",
                f"{file.name} is not a readable safetensors file: {error}",
                where=str(file),
                fix="check that the download or copy is complete",
            ) from error
    if is_torchscript(file):
        raise UsageError(
            "MT102",
            f"{file.name} is a TorchScript program, whose operations cannot be examined",
            where=str(file),
            fix="give the original class as pkg.module:Net, or save it with torch.export.save",
        )
    try:
        return torch.load(str(file), map_location="cpu", weights_only=True)
    except Exception as error:
        names = pickle_calls(file.read_bytes())
        if not names and not _needs_more_than_tensors(error):
            raise UsageError(
                "MT105",
                f"{file.name} is not a readable checkpoint: {first_line(error)}",
                where=str(file),
                fix="check that it was written by torch.save and copied completely",
            ) from error
        if not trust:
            raise _refuse_pickle(file, names) from error
    try:
        return torch.load(str(file), map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            "MT103",
            f"{file.name} cannot be unpickled here: {first_line(error)}",
            where=str(file),
            fix="run it where the classes it names can be imported (--path FOLDER)",
        ) from error
    except Exception as error:
        raise UsageError(
            "MT105",
            f"{file.name} is not a readable checkpoint: {first_line(error)}",
            where=str(file),
            fix="check that it was written by torch.save and copied completely",
        ) from error


def _needs_more_than_tensors(error: Exception) -> bool:
    return "Unsupported global" in str(error) or "Unsupported class" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of a message that may be pages long."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(error).__name__


@dataclass(frozen=True)
class Weights:
    """Named tensors taken out of a checkpoint, and how they were found in it."""

    tensors: dict[str, torch.Tensor]
    nested_under: str = ""
    left_out: tuple[str, ...] = ()
    """Entries that are no tensors (optimiser state, epoch numbers, configuration)."""


def find_weights(content: Any, source: str) -> Weights:
    """Find the named tensors in what a checkpoint holds: the dictionary itself, or one nested in it.

    Raises:
        UsageError: MT105, there is no dictionary of tensors in it.
    """
    import torch

    if isinstance(content, torch.nn.Module):
        return Weights(dict(content.state_dict()), nested_under=f"a whole {type(content).__name__}")
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        others = tuple(str(k) for k in content if str(k) not in tensors)
        if tensors and len(tensors) >= len(others):
            return Weights(tensors, left_out=others)
        for key in (*NESTS, *(k for k in content if k not in NESTS)):
            inner = content.get(key)
            if isinstance(inner, torch.nn.Module) or _is_state(inner):
                found = find_weights(inner, source)
                siblings = tuple(str(k) for k in content if k != key)
                return Weights(found.tensors, nested_under=str(key), left_out=siblings + found.left_out)
        if tensors:
            return Weights(tensors, left_out=others)
        held = "a dictionary with the keys " + (", ".join(map(str, list(content)[:8])) or "(none)")
    else:
        held = f"a {type(content).__name__}"
    raise UsageError(
        "MT105",
        f"no named tensors were found in {source}: it holds {held}",
        where=source,
        fix="save the network's state with torch.save(model.state_dict(), ...)",
    )


def _is_state(value: Any) -> bool:
    import torch

    if not isinstance(value, Mapping) or not value:
        return False
    return sum(isinstance(v, torch.Tensor) for v in value.values()) * 2 >= len(value)


def read_weights(path: str | Path, *, trust: bool = False) -> Weights:
    """Named tensors of a weights file; see :func:`read_checkpoint` for what is refused."""
    return find_weights(read_checkpoint(path, trust=trust), Path(path).name)


# ------------------------------------------------------------------------------------------------ fitting


def fit_weights(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], *, source: str, strip_prefix: str | None = None
) -> None:
    """Put the tensors into the network, or say exactly why they do not fit.

    Keys a network can do without are not demanded: counters of batch-norm, and names that share memory with
    one that is present (safetensors keeps only one of two tied names).

    Raises:
        UsageError: MT104 with the missing, unexpected and misshapen keys, and a prefix to strip.
    """
    if strip_prefix:
        if not any(key.startswith(strip_prefix) for key in tensors):
            raise UsageError(
                "MT104",
                f"--strip-prefix {strip_prefix} matches none of the {len(tensors)} keys",
                where=source,
                fix=f"they begin like '{next(iter(tensors), '')}'",
            )
        tensors = {key.removeprefix(strip_prefix): value for key, value in tensors.items()}
    wanted = model.state_dict(keep_vars=True)
    missing, unexpected, misshapen = _mismatch(wanted, tensors)
    if not (missing or unexpected or misshapen):
        model.load_state_dict(dict(tensors), strict=False)
        return
    raise UsageError(
        "MT104",
        f"weights do not fit: {_describe_mismatch(missing, unexpected, misshapen, len(wanted))}",
        where=f"{source} into {type(model).__name__}",
        fix=_suggest_prefix(wanted, tensors)
        or "build the network with the sizes the weights were trained with",
    )


def _mismatch(
    wanted: Mapping[str, Any], given: Mapping[str, torch.Tensor]
) -> tuple[list[str], list[str], list[str]]:
    from torch.nn.parameter import is_lazy

    present = {id(wanted[key]) for key in wanted if key in given}
    missing = [
        key
        for key, value in wanted.items()
        if key not in given
        and id(value) not in present
        and not key.endswith(("num_batches_tracked", "_extra_state"))
    ]
    unexpected = [key for key in given if key not in wanted]
    misshapen = [
        f"{key} is {list(given[key].shape)}, the network has {list(value.shape)}"
        for key, value in wanted.items()
        if key in given and hasattr(value, "shape") and not is_lazy(value) and value.shape != given[key].shape
    ]
    return missing, unexpected, misshapen


def _describe_mismatch(missing: list[str], unexpected: list[str], misshapen: list[str], total: int) -> str:
    def few(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    parts = []
    if missing:
        parts.append(f"{len(missing)} of {total} keys are missing ({few(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are not in the network ({few(unexpected)})")
    if misshapen:
        parts.append(f"{len(misshapen)} have another shape ({few(misshapen)})")
    return ", ".join(parts)


def _suggest_prefix(wanted: Mapping[str, Any], given: Mapping[str, torch.Tensor]) -> str:
    """Find a prefix whose removal from the file's keys (or from the network's) lets more of them match."""
    prefixes: Counter[str] = Counter()
    for key in wanted:
        for other in given:
            if other != key and other.endswith("." + key):
                prefixes[other[: -len(key)]] += 1
    for prefix in WRAPPERS:
        prefixes[prefix] += 0
    before = sum(key in wanted for key in given)
    best, count = "", before
    for prefix in prefixes:
        fitting = sum(key.removeprefix(prefix) in wanted for key in given)
        if fitting > count:
            best, count = prefix, fitting
    if best:
        return f"{count} of {len(given)} keys fit without '{best}': --strip-prefix {best}"
    for prefix in {key.split(".", 1)[0] + "." for key in wanted if "." in key}:
        if sum(prefix + key in wanted for key in given) > before:
            return (
                f"the network's own keys begin with '{prefix}': give the inner network, without its wrapper"
            )
    return ""


# ------------------------------------------------------------------------------------------------ converting


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` wrote."""

    source: str
    target: str
    tensors: int
    bytes: int
    nested_under: str
    left_out: tuple[str, ...]
    copied: tuple[str, ...]
    """Names that shared memory with another and were written as copies."""

    def text(self) -> str:
        """Say it in sentences."""
        lines = [f"{self.target}: {self.tensors} tensors, {self.bytes / 1e6:.2f} MB, from {self.source}"]
        if self.nested_under:
            lines.append(f"the tensors were found under {self.nested_under}")
        if self.left_out:
            listed = ", ".join(self.left_out[:8]) + (" ..." if len(self.left_out) > 8 else "")
            lines.append(f"left out, as they are no tensors of the network: {listed}")
        if self.copied:
            lines.append(f"{len(self.copied)} names share memory with another and were written as copies")
        return "\n".join(lines)


def convert(src: str | Path, dst: str | Path, *, trust: bool = False, overwrite: bool = False) -> Conversion:
    """Write the weights of a checkpoint as safetensors, which holds tensors and can run nothing.

    A whole pickled network becomes its ``state_dict``: its code stays where it is, so examine the result as
    ``pkg.module:Net --weights out.safetensors``.

    Raises:
        UsageError: MT100, MT103 or MT105 as in :func:`read_checkpoint`; MT106 the target cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    source, target = Path(src), Path(dst)
    if target.suffix != ".safetensors":
        raise UsageError(
            "MT106",
            f"the target '{dst}' does not end in .safetensors",
            fix=f"write {target.stem}.safetensors",
        )
    if target.exists() and not overwrite:
        raise UsageError("MT106", f"{target} exists already", fix="pass --overwrite or choose another name")
    found = read_weights(source, trust=trust)
    written: dict[str, torch.Tensor] = {}
    copied: list[str] = []
    seen: set[int] = set()
    for name, tensor in found.tensors.items():
        value = tensor.detach().cpu()
        if value.is_sparse:
            value = value.to_dense()
        address = value.untyped_storage().data_ptr()
        if address in seen and value.numel():
            copied.append(name)
            value = value.clone()  # safetensors refuses shared memory; a copy keeps every name loadable
        seen.add(address)
        if value.untyped_storage().nbytes() != value.numel() * value.element_size():
            value = value.clone()  # a view would drag the rest of its storage along
        written[name] = value.contiguous()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(written, str(partial), metadata={"format": "pt"})
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UsageError(
            "MT106", f"cannot write {target}: {first_line(error)}", fix="choose a folder you may write to"
        ) from error
    return Conversion(
        source=str(source),
        target=str(target),
        tensors=len(written),
        bytes=target.stat().st_size,
        nested_under=found.nested_under,
        left_out=found.left_out,
        copied=tuple(copied),
    )
