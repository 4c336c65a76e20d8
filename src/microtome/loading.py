"""From names on a command line to networks and data: ``pkg.module:attr``, exported programs, files of arrays.

Naming ``pkg.module:attr`` imports that module, as ``python -m`` would. An exported program (``.pt2``) is
code too: ``torch.export.load`` evaluates text stored in it and unpickles its sample inputs. Its pickles are
checked first and refused like any other, yet only load programs from people whose code you would run.
Weights and arrays are plain data and run nothing (:mod:`microtome.checkpoints`).
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import pkgutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.checkpoints import (
    PICKLES,
    WEIGHT_FILES,
    Conversion,
    convert,
    existing_file,
    find_weights,
    first_line,
    fit_weights,
    pickle_calls,
    read_checkpoint,
    read_weights,
)
from microtome.data.arrays import BATCH_SIZE, ArrayBatches, Replayed
from microtome.errors import SubjectError, UsageError, nearest, place

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ArrayBatches", "Conversion", "Replayed", "convert", "load_data", "load_model", "read_weights"]

ARRAY_FILES = (".npz", ".safetensors")


# ------------------------------------------------------------------------------------------------ names


def import_target(target: str, *, what: str, search_path: str | Path | None = None) -> Any:
    """Import ``pkg.module:attr`` with the given folder (the current one by default) on ``sys.path``.

    The folder stays on the path: networks may import more when they run.

    Raises:
        UsageError: MT101 for a name that does not exist (naming the nearest), MT107 for a module that fails.
    """
    module_name, _, attribute = target.partition(":")
    folder = Path(search_path or os.curdir).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError("MT100", f"--path {search_path} is not a folder", where=str(folder.parent))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        raise UsageError(
            "MT101",
            f"'{module_name}' is a file, and {what} is named by its module",
            where=str(folder),
            fix=_dotted(Path(module_name), attribute or "NAME", folder),
        )
    module = _import(module_name, target, what, folder)
    if not attribute:
        raise UsageError(
            "MT101",
            f"'{target}' names a module, not {what} in it",
            where=getattr(module, "__file__", None) or module_name,
            fix=f"write {module_name}:NAME; it has {_some(_public(module))}",
        )
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            known = _public(value)
            raise UsageError(
                "MT101",
                f"'{module_name}' has no attribute '{attribute}'",
                where=getattr(module, "__file__", None) or module_name,
                fix=nearest(part, known) or f"it has {_some(known)}",
            ) from None
    return value


def _dotted(file: Path, attribute: str, folder: Path) -> str:
    """How to name what is in a file: by its package if it is in one, else from its own folder."""
    parts, parent = [file.stem], file.parent
    while parent.name and (folder / parent / "__init__.py").is_file():
        parts, parent = [parent.name, *parts], parent.parent
    return f"write {'.'.join(parts)}:{attribute}" + (f" --path {parent}" if parent != Path() else "")


def _import(name: str, target: str, what: str, folder: Path) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            "MT101",
            f"'{target}' is neither a file nor pkg.module:attr",
            where=str(folder),
            fix=f"write {what} as pkg.module:attr",
        )
    try:
        importlib.invalidate_caches()  # the file may be younger than the import system's view of its folder
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            known = _importable(name, folder)
            attribute = target.partition(":")[2]
            suggestions = [f"{module}:{attribute}" if attribute else module for module in known]
            raise UsageError(
                "MT101",
                f"cannot import '{target}'",
                where=str(folder),
                fix=nearest(target, suggestions) or "--path FOLDER names the folder it is in",
            ) from None
        raise UsageError(
            "MT107",
            f"importing '{name}' needs '{error.name}', which is not installed",
            where=place(error),
            fix=f"install {error.name} beside microtome",
        ) from error
    except Exception as error:
        raise _failed_import(name, error) from error


def _failed_import(name: str, error: Exception) -> UsageError:
    return UsageError(
        "MT107",
        f"'{name}' fails to import: {type(error).__name__}: {error}",
        where=place(error),
        fix=f"try `python -c 'import {name}'`",
    )


def _importable(name: str, folder: Path) -> list[str]:
    """Modules beside the one that was not found."""
    parent, _, _ = name.rpartition(".")
    if parent:
        try:
            package = importlib.import_module(parent)
            return [f"{parent}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))]
        except Exception:
            parent = ""
    found = [m.name for m in pkgutil.iter_modules([str(folder)])]
    for module in list(found):
        inner = folder / module
        if inner.is_dir():
            found += [f"{module}.{m.name}" for m in pkgutil.iter_modules([str(inner)])]
    return found


def _public(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]


def _some(names: Iterable[str], count: int = 6) -> str:
    listed = list(names)
    return (", ".join(listed[:count]) + (" ..." if len(listed) > count else "")) or "no public names"


# ------------------------------------------------------------------------------------------------ networks


def load_model(
    target: str,
    weights: str | Path | None = None,
    search_path: str | Path | None = None,
    strip_prefix: str | None = None,
    *,
    trust_pickle: bool = False,
) -> nn.Module:
    """Build the network a name stands for and put weights into it.

    Args:
        target: ``pkg.module:attr``, where ``attr`` is a network, or a class or function that gives one when
            called without arguments; or a ``.pt2`` file written by ``torch.export.save``.
        weights: ``.safetensors``, or a pickled state (``.pt``, ``.pth``) that holds nothing but tensors.
        search_path: folder to import from; the current one by default.
        strip_prefix: remove this from the beginning of the weights' names.
        trust_pickle: run the pickle whatever it calls; only for a file you made yourself.

    Raises:
        UsageError: MT100 to MT107, each naming what, where and what to do.
        SubjectError: MT108, building the network failed.
    """
    suffix = Path(target).suffix.lower()
    if suffix == ".pt2" and ":" not in target:
        model = _load_program(existing_file(target, "exported program"), trust=trust_pickle)
    elif suffix in WEIGHT_FILES and ":" not in target:
        raise _weights_are_no_network(existing_file(target, "network"))
    else:
        model = _as_network(import_target(target, what="a network", search_path=search_path), target)
    if weights is not None:
        found = read_weights(weights, trust=trust_pickle)
        fit_weights(model, found.tensors, source=Path(weights).name, strip_prefix=strip_prefix)
    elif strip_prefix:
        raise UsageError("MT104", "--strip-prefix has no weights to work on", fix="add --weights FILE")
    return model


def _as_network(value: Any, target: str) -> nn.Module:
    import torch
    from torch import nn

    if isinstance(value, nn.Module):
        return value
    built = value
    if callable(value):
        built = _call(value, target)
    if isinstance(built, torch.export.ExportedProgram):
        return _program_module(built)
    if isinstance(built, nn.Module):
        return built
    gives = "gives" if built is not value else "is"
    if isinstance(built, Mapping) and any(isinstance(v, torch.Tensor) for v in built.values()):
        tensors = sum(isinstance(v, torch.Tensor) for v in built.values())
        raise UsageError(
            "MT102",
            f"{target} {gives} a dictionary of {tensors} tensors, no network",
            fix="name the class or function that builds the network, and give the tensors by --weights",
        )
    raise UsageError(
        "MT102",
        f"{target} {gives} a {type(built).__name__}, not a torch.nn.Module",
        fix="name a network, or a class or function that gives one when called without arguments",
    )


def _call(function: Callable[..., Any], target: str) -> Any:
    """Call a factory without arguments; its failure is told in one sentence."""
    try:
        needed = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except (ValueError, TypeError):  # builtins without a signature
        needed = []
    if needed:
        raise UsageError(
            "MT102",
            f"{target} needs arguments ({', '.join(needed)})",
            fix="name a function without arguments that calls it with yours",
        )
    try:
        return function()
    except Exception as error:
        raise SubjectError(
            "MT108",
            f"{target}() raised {type(error).__name__}: {error}",
            where=place(error),
            fix="--debug shows the traceback",
        ) from error


def _weights_are_no_network(file: Path) -> UsageError:
    """Say what a weights file holds, without running it."""
    fix = f"give the class: pkg.module:Net --weights {file.name}"
    try:
        content = read_checkpoint(file)
        held = f"holds {len(find_weights(content, file.name).tensors)} tensors, no network"
    except UsageError as error:
        if error.code == "MT102" or (error.code == "MT105" and file.suffix == ".safetensors"):
            return error
        held = "holds no network that can be examined: " + error.what
        if error.code == "MT103":
            held = f"is a pickle that calls more than tensors ({error.what.partition('would call ')[2]})"
            fix = (
                f"if you made it yourself: `microtome convert {file.name} {file.stem}.safetensors "
                f"--trust-pickle`, then pkg.module:Net --weights {file.stem}.safetensors"
            )
    return UsageError("MT102", f"{file.name} {held}", where=str(file), fix=fix)


def _load_program(file: Path, *, trust: bool) -> nn.Module:
    import torch

    calls = set() if trust else _program_pickles(file)
    if calls:
        raise UsageError(
            "MT103",
            f"refused: loading {file.name} would unpickle {', '.join(sorted(calls))}",
            where=str(file),
            fix="if you exported it yourself, pass --trust-pickle; otherwise ask its author for the source",
        )
    try:
        program = torch.export.load(str(file))
    except Exception as error:
        raise UsageError(
            "MT105",
            f"{file.name} is not a readable exported program: {first_line(error)}",
            where=str(file),
            fix=f"export it again with torch.export.save under torch {torch.__version__}",
        ) from error
    return _program_module(program)


def _program_pickles(file: Path) -> set[str]:
    """What the pickles inside an exported program need beyond tensors; none of them is run.

    ``torch.export.load`` unpickles freely whatever does not load as plain tensors, so everything it would
    unpickle is first read by the restricted unpickler here.
    """
    import torch

    if not zipfile.is_zipfile(file):
        raise UsageError(
            "MT105",
            f"{file.name} is not an exported program",
            where=str(file),
            fix="write it with torch.export.save",
        )
    needs: set[str] = set()
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            base = name.rsplit("/", 1)[-1]
            if base.endswith("_config.json"):
                payloads = json.loads(archive.read(name)).get("config", {})
                for key, payload in payloads.items():
                    if payload.get("use_pickle") or not payload["path_name"].startswith(
                        ("weight_", "tensor_")
                    ):
                        needs.add(f"the stored object '{key}'")
            elif base.endswith(".pt") or (base.startswith("serialized_") and "program" not in base):
                content = archive.read(name)
                try:
                    if content:
                        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                except Exception:
                    needs.update(pickle_calls(content) or {f"the pickle {base}"})
    return needs


def _program_module(program: torch.export.ExportedProgram) -> nn.Module:
    """The program's module, whose mode is the one it was exported in whatever anyone asks of it."""
    module = program.module()

    def keep_mode(mode: bool = True) -> nn.Module:
        return module

    # An exported module raises when told train() or eval(); whoever measures it says eval() to everything.
    module.train = keep_mode  # type: ignore[method-assign, assignment]
    module.eval = keep_mode  # type: ignore[method-assign, assignment]
    return module


# ------------------------------------------------------------------------------------------------ data


def load_data(
    target: str, search_path: str | Path | None = None, *, batch_size: int = BATCH_SIZE
) -> Iterable[Any]:
    """Find the batches a name stands for.

    Args:
        target: ``pkg.module:attr``, an iterable of batches, a ``DataLoader``, a ``Dataset`` (cut into batches
            in its own order), tensors ``(x, y)``, or a function without arguments that gives one of these; or
            a ``.npz`` or ``.safetensors`` file with the arrays ``x`` and ``y``.
        search_path: folder to import from.
        batch_size: of datasets and arrays.

    Raises:
        UsageError: MT100, MT101, MT103 or MT109, naming what was found instead.
    """
    if Path(target).suffix.lower() in ARRAY_FILES and ":" not in target:
        return _load_arrays(existing_file(target, "data file"), batch_size)
    if Path(target).suffix.lower() in PICKLES and ":" not in target:
        raise UsageError(
            "MT109",
            f"{target} is a pickle, and data are read from .npz or .safetensors",
            fix="save arrays x and y",
        )
    named = Path(target).expanduser()
    if ":" not in target and (named.is_file() or (named.is_dir() and not target.isidentifier())):
        raise UsageError(
            "MT109",
            f"{target} is {'a folder' if named.is_dir() else 'no file of arrays'}",
            where=str(named.resolve()),
            fix="name a function that reads it as pkg.module:attr, or save arrays x and y as .npz or .safetensors",
        )
    value = import_target(target, what="data", search_path=search_path)
    return _as_batches(value, target, batch_size, fresh=None)


def _as_batches(
    value: Any, target: str, batch_size: int, fresh: Callable[[], Iterable[Any]] | None
) -> Iterable[Any]:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset, IterableDataset

    if isinstance(value, DataLoader):
        return value
    if isinstance(value, (Dataset, IterableDataset)):
        return DataLoader(value, batch_size=batch_size)
    if isinstance(value, Mapping) and {"x", "y"} <= set(value) and hasattr(value["x"], "shape"):
        return ArrayBatches(torch.as_tensor(value["x"]), torch.as_tensor(value["y"]), batch_size)
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, (torch.Tensor, np.ndarray)) for part in value)
    ):
        return ArrayBatches(torch.as_tensor(value[0]), torch.as_tensor(value[1]), batch_size)
    if isinstance(value, Iterator):
        if fresh is not None:
            return Replayed(fresh)
        raise UsageError(
            "MT109",
            f"{target} is a {type(value).__name__}, which can be read only once",
            fix="name the function that makes it, or a list or DataLoader",
        )
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, type, torch.nn.Module, Mapping)):
        return value
    if callable(value) and not isinstance(value, torch.nn.Module) and fresh is None:
        return _as_batches(_call(value, target), target, batch_size, fresh=value)
    raise UsageError(
        "MT109",
        f"{target} is a {type(value).__name__}, not batches",
        fix="name a list of batches, a DataLoader, a Dataset, or a function that gives one",
    )


def _load_arrays(file: Path, batch_size: int) -> ArrayBatches:
    import numpy as np
    import torch

    arrays: dict[str, torch.Tensor] = {}
    if file.suffix == ".safetensors":
        arrays = read_checkpoint(file)
    elif not zipfile.is_zipfile(file):
        # numpy would take it for a pickle, and blame that
        raise UsageError(
            "MT109",
            f"{file.name} cannot be read: it is no numpy archive",
            where=str(file),
            fix="write it with numpy.savez(.., x=x, y=y)",
        )
    else:
        try:
            with np.load(file, allow_pickle=False) as stored:
                names = list(stored.files)
                arrays = {name: torch.from_numpy(stored[name]) for name in names if name in ("x", "y")}
        except ValueError as error:
            if "allow_pickle" in str(error) or "Object arrays" in str(error):
                raise UsageError(
                    "MT103",
                    f"refused: {file.name} holds pickled objects",
                    where=str(file),
                    fix="save plain numeric arrays x and y",
                ) from error
            raise UsageError("MT109", f"{file.name} cannot be read: {error}", where=str(file)) from error
        except TypeError as error:
            raise UsageError(
                "MT109",
                f"{file.name} holds what is no number: {first_line(error).partition('. The only')[0]}",
                where=str(file),
                fix="save x as numbers, and y as class numbers or values",
            ) from error
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError("MT109", f"{file.name} cannot be read: {error}", where=str(file)) from error
    if "x" not in arrays:
        held = _some(names if file.suffix != ".safetensors" else arrays)
        raise UsageError(
            "MT109",
            f"{file.name} holds no array x (it holds {held})",
            where=str(file),
            fix="name the inputs x and the targets y",
        )
    x, y = arrays["x"], arrays.get("y")
    if x.dtype == torch.float64:
        x = x.to(torch.get_default_dtype())  # numpy's default, hardly ever the network's
    if y is not None and not y.is_floating_point() and y.dtype != torch.bool:
        y = y.long()
    return ArrayBatches(x, y, batch_size)
