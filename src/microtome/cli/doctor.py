"""``microtome doctor``: what is here, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from microtome.cli.examine import Store
from microtome.cli.output import align, show, show_json

INSTALL = "pip install"
HELPERS = ("test", "docs", "dev")
"""Extras for people who work on microtome; their absence is no news to others."""

_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)[^;]*(?:;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"])?")


@dataclass(frozen=True)
class Check:
    """One line."""

    topic: str
    name: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""
    required: bool = True
    """Whether microtome works at all without it."""


def doctor(*, store: Store = None, json: Annotated[bool, Parameter(help="Print JSON.")] = False) -> int:
    """Look at versions, extras, devices, the store and plug-ins; say what is missing and how to get it.

    Exit status 1 if something is missing that nothing works without.
    """
    checks = [*_system(), *_packages(), *_devices(), *_folders(store), *_plugins()]
    sick = [check for check in checks if check.required and check.status != "ok"]
    if json:
        show_json({"healthy": not sick, "checks": [asdict(check) for check in checks]})
    else:
        rows = [
            (c.topic, c.name, c.status, c.detail + (f"; {c.fix}" if c.fix and c.status != "ok" else ""))
            for c in checks
        ]
        show(align(rows))
        show("all is well" if not sick else f"needs care: {', '.join(check.name for check in sick)}")
    return 1 if sick else 0


def _system() -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        yield Check("version", "microtome", "ok", version("microtome"))
    except PackageNotFoundError:
        yield Check("version", "microtome", "missing", "runs from source", f"{INSTALL} -e .", required=False)
    yield Check(
        "version", "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )


def _packages() -> Iterator[Check]:
    """Read the requirements off the installed metadata: there is no second list to keep."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        lines = requires("microtome") or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match["extra"] in HELPERS:
            continue
        name, extra = match["name"], match["extra"]
        try:
            yield Check(
                f"extra {extra}" if extra else "package", name, "ok", version(name), required=not extra
            )
        except PackageNotFoundError:
            fix = f'{INSTALL} "microtome[{extra}]"' if extra else f"{INSTALL} {name}"
            yield Check(
                f"extra {extra}" if extra else "package", name, "missing", "-", fix, required=not extra
            )


def _devices() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:
        yield Check("device", "torch", "broken", f"{type(error).__name__}: {error}", f"{INSTALL} torch")
        return
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    yield Check("device", "cpu", "ok", threads)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Check("device", f"cuda:{index}", "ok", f"{properties.name}, {memory}", required=False)
    if torch.backends.mps.is_available():
        yield Check("device", "mps", "ok", "Apple GPU", required=False)


def _folders(store: str | None) -> Iterator[Check]:
    from microtome.errors import MicrotomeError

    try:
        from microtome.store import open_store

        with open_store(store) as opened:
            folder = opened.location.folder
            writable = os.access(folder, os.W_OK)
            detail = f"{opened.location.text()}, {len(opened.list())} runs"
        if writable:
            yield Check("folder", "store", "ok", detail)
        else:
            yield Check(
                "folder", "store", "broken", f"{folder} cannot be written to", "choose another by --store"
            )
    except MicrotomeError as error:
        yield Check("folder", "store", "broken", str(error), "" if error.fix else "choose another by --store")
    try:
        from microtome.reference import cache_folder
    except ImportError:  # torch is broken, which has been said
        return
    cache = cache_folder()
    nearest_folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    ok = os.access(nearest_folder, os.W_OK)
    yield Check(
        "folder",
        "cache",
        "ok" if ok else "broken",
        str(cache),
        "set MICROTOME_CACHE to a folder of yours",
        required=False,
    )


def _plugins() -> Iterator[Check]:
    try:
        from microtome.registry import plugins
    except ImportError as error:
        yield Check("plug-in", "registry", "broken", str(error))
        return
    for name, group, problem in plugins():
        if problem is None:
            yield Check("plug-in", name, "ok", group, required=False)
        else:
            yield Check(
                "plug-in",
                name,
                "broken",
                f"{group}: {problem}",
                "update or remove its package",
                required=False,
            )
    if sys.flags.optimize:
        yield Check("python", "-O", "broken", "assertions are off", "run without -O", required=False)
