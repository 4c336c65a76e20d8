"""Token ids as text: from a file of a tokenizer, a list of words, or a tokenizer that is there already.

Files are read as what they are, text or JSON; nothing in them runs, and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from microtome.errors import UsageError

Words = Callable[[Sequence[int]], list[str]]
NAMES = ("tokenizer.json", "vocab.json", "vocab.txt")
"""Files in which tokenizers keep their words, in the order of preference."""
LARGEST = 256 << 20
CARRIED = ("tokenizer", "vocabulary")


def words_of(given: Any) -> Words | None:
    """What turns ids into text; None where ``given`` is nothing of the kind.

    Args:
        given: a list of words, a dict of id -> text or text -> id, or a tokenizer with ``convert_ids_to_tokens``
            (transformers) or ``id_to_token`` (tokenizers).
    """
    if isinstance(given, Mapping):
        table = _table(given)
        return _lookup(table) if table else None
    if isinstance(given, list | tuple):
        known = {i: str(word) for i, word in enumerate(given)} if given and isinstance(given[0], str) else {}
        return _lookup(known) if known else None
    if callable(convert := getattr(given, "convert_ids_to_tokens", None)):
        return lambda ids: [readable(str(word)) for word in convert(list(ids))]
    if callable(one := getattr(given, "id_to_token", None)):
        return lambda ids: [readable(word) if (word := one(i)) is not None else str(i) for i in ids]
    return None


def carried(*carriers: Any) -> Words | None:
    """The words that a batch, its data or the network brings along as "tokenizer" or "vocabulary"."""
    for carrier in carriers:
        for name in CARRIED:
            held = carrier.get(name) if isinstance(carrier, Mapping) else getattr(carrier, name, None)
            if held is not None and (found := words_of(held)) is not None:
                return found
    return None


def read_vocabulary(where: str | os.PathLike[str]) -> dict[int, str]:
    """Id -> text from a local file.

    Args:
        where: ``tokenizer.json`` of the tokenizers library, ``vocab.json`` (text -> id, or a list), a text file with a
            token a line, a folder with one of these, or the name of a model that is in the local cache already.

    Raises:
        UsageError: MT515 where there is no such file, MT516 where it is not one of these.
    """
    file = _find(where)
    if file.suffix == ".txt":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(
                "MT516", "this is no text", where=str(file), fix="a vocabulary is UTF-8"
            ) from error
        return {i: readable(line) for i, line in enumerate(lines)}
    try:
        held = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        fix = "give tokenizer.json, vocab.json or vocab.txt; tokenizer.save_pretrained(folder) writes them"
        raise UsageError("MT516", "this is no JSON", where=str(file), fix=fix) from error
    found = _table(_vocabulary(held))
    if not found:
        fix = "write {token: id}, or a list of words, or what the tokenizers library saves"
        raise UsageError("MT516", "no vocabulary is in this file", where=str(file), fix=fix)
    return {i: readable(word) for i, word in found.items()}


def _find(where: str | os.PathLike[str]) -> Path:
    path = Path(where).expanduser()
    found = next((path / name for name in NAMES if (path / name).is_file()), path) if path.is_dir() else path
    if not found.exists() and not path.is_absolute() and path.suffix not in (".json", ".txt"):
        found = _cached(str(where)) or found
    if not found.is_file():
        held = f"a folder without {', '.join(NAMES)}" if path.is_dir() else "not here"
        fix = "give the path of tokenizer.json, vocab.json or vocab.txt; nothing is downloaded"
        raise UsageError("MT515", f"the tokenizer '{where}' is {held}", fix=fix)
    if found.stat().st_size > LARGEST:
        raise UsageError(
            "MT516", f"this is too large for a vocabulary: {found.stat().st_size:,} bytes", where=str(found)
        )
    return found


def _cached(name: str) -> Path | None:
    """A file of a named model in the local cache of huggingface_hub, which is not asked for anything else."""
    try:
        from huggingface_hub import try_to_load_from_cache

        held = [try_to_load_from_cache(name, file) for file in NAMES]
    except (ImportError, ValueError, OSError):
        return None
    return next((Path(file) for file in held if isinstance(file, str)), None)


def _vocabulary(held: Any) -> dict[int, str] | Any:
    """The words of a tokenizer.json, whose model holds them as a dict, or as a list with scores (Unigram)."""
    model = held.get("model") if isinstance(held, dict) else None
    if not isinstance(model, dict):
        return held
    words = model.get("vocab")
    if isinstance(words, list):
        words = [entry[0] if isinstance(entry, list) and entry else entry for entry in words]
    made = _table(words)
    added = held.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("id"), int)
            and isinstance(entry.get("content"), str)
        ):
            made[entry["id"]] = entry["content"]
    return made


def _table(given: Any) -> dict[int, str]:
    """Id -> text from either direction, or a list; empty where it is neither."""
    if isinstance(given, list | tuple):
        return {i: word for i, word in enumerate(given) if isinstance(word, str)}
    if not isinstance(given, Mapping):
        return {}
    pairs: Iterable[tuple[Any, Any]] = given.items()
    made: dict[int, str] = {}
    for key, value in pairs:
        if isinstance(key, int) and isinstance(value, str):
            made[key] = value
        elif isinstance(key, str) and isinstance(value, int) and not isinstance(value, bool):
            made[value] = key
        elif isinstance(key, str) and key.isdecimal() and isinstance(value, str):
            made[int(key)] = value  # JSON has no whole numbers for keys
    return made


def _lookup(table: Mapping[int, str]) -> Words:
    return lambda ids: [table.get(i, str(i)) for i in ids]


def readable(token: str) -> str:
    """A token as people read it: bytes as letters, no marks where a word begins."""
    if token and all(c in _bytes() for c in token) and any(c not in _PLAIN for c in token):
        spelled = bytes(_bytes()[c] for c in token).decode("utf-8", errors="replace")
        token = token if "\ufffd" in spelled else spelled  # an accented letter of its own, or half a letter
    token = token.replace("▁", " ")
    shown = token.strip(" ")
    return (shown or "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


_PLAIN = frozenset(chr(c) for c in range(33, 127))


@cache
def _bytes() -> dict[str, int]:
    """The letters by which byte-level tokenizers (GPT-2's) write bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(rest)}
