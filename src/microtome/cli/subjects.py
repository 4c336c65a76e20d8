"""From what was written on the command line to a network and its data."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from microtome.cli.output import say, split_list
from microtome.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

REFERENCE = "microtome.reference"
"""What the stored source says when the embedded default was examined."""

Target = Annotated[
    str | None,
    Parameter(
        help="pkg.module:attr (a network, or what builds one) or model.pt2. Default: digits, embedded."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class SubjectOptions:
    """What is examined, on what data."""

    weights: Annotated[
        str | None, Parameter(help="Weights: .safetensors, or a .pt that holds only tensors.")
    ] = None
    data: Annotated[
        str | None,
        Parameter(
            help="pkg.module:attr (batches, DataLoader, Dataset, function), or .npz/.safetensors with x, y."
        ),
    ] = None
    task: Annotated[str | None, Parameter(help="The task, where the inference would be wrong.")] = None
    inputs: Annotated[str | None, Parameter(help="Keys of dict batches that are inputs, by comma.")] = None
    target_key: Annotated[
        str | None, Parameter(name="--target", help="Key of dict batches that is the target.")
    ] = None
    label_offset: Annotated[int, Parameter(help="The smallest label, where labels do not start at 0.")] = 0
    outputs: Annotated[
        Literal["logits", "probs"] | None,
        Parameter(help="What the network answers, where it cannot be told."),
    ] = None
    bounds: Annotated[
        str | None, Parameter(help="Range of valid inputs as LOW,HIGH; attacks stay inside.")
    ] = None
    normalize: Annotated[
        str | None,
        Parameter(
            help="MEAN,STD with which inputs of range 0..1 (or --bounds) were normalised; gives the bounds."
        ),
    ] = None
    tokenizer: Annotated[
        str | None,
        Parameter(
            help="Words of token ids: tokenizer.json, vocab.json, vocab.txt, their folder, or a cached model's name."
        ),
    ] = None
    device: Annotated[
        str | None, Parameter(env_var="MICROTOME_DEVICE", help="cpu, cuda, mps, cuda:1 ...")
    ] = None
    path: Annotated[str | None, Parameter(help="Folder to import from. Default: the current one.")] = None
    strip_prefix: Annotated[
        str | None, Parameter(help="Remove this from the beginning of the weights' names.")
    ] = None
    trust_pickle: Annotated[
        bool, Parameter(help="Run pickles whatever they call: you made them yourself.")
    ] = False


DEFAULT_SUBJECT = SubjectOptions()


def read_numbers(text: str, option: str) -> list[float]:
    """Numbers by comma.

    Raises:
        UsageError: MT115.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "MT115", f"'{text}' are not numbers by comma", where=option, fix=f"write {option} 0,1"
        ) from None


def input_bounds(bounds: str | None, normalize: str | None) -> tuple[float, float] | None:
    """The range of inputs as the network receives them.

    ``--normalize`` gives means and deviations, one each or one a channel (all means, then all deviations);
    the widest range over the channels counts.

    Raises:
        UsageError: MT115.
    """
    given = read_numbers(bounds, "--bounds") if bounds is not None else None
    if given is not None and (len(given) != 2 or not given[0] < given[1]):
        raise UsageError(
            "MT115", f"--bounds {bounds} is no range", fix="write --bounds LOW,HIGH, such as 0,1"
        )
    if normalize is None:
        return (given[0], given[1]) if given else None
    low, high = given or (0.0, 1.0)
    numbers = read_numbers(normalize, "--normalize")
    half = len(numbers) // 2
    means, deviations = numbers[:half], numbers[half:]
    if len(means) != len(deviations) or not means or min(deviations) <= 0:
        raise UsageError(
            "MT115",
            f"--normalize {normalize} is not MEAN,STD",
            fix="write one mean and one deviation, such as 0.5,0.25",
        )
    channels = list(zip(means, deviations, strict=True))
    return min((low - m) / s for m, s in channels), max((high - m) / s for m, s in channels)


def load_subject(
    target: str | None, options: SubjectOptions, seed: int
) -> tuple[nn.Module, Iterable[Any], dict[str, Any]]:
    """Load the network and its data; also the keyword arguments of the subject, with its source for --resume.

    Raises:
        MicrotomeError: MT1xx, see :mod:`microtome.loading`.
    """
    bounds = input_bounds(options.bounds, options.normalize)
    keywords: dict[str, Any] = {
        "task": options.task,
        "bounds": bounds,
        "inputs": split_list([options.inputs]) if options.inputs else None,
        "target": options.target_key,
        "label_offset": options.label_offset,
        "outputs": options.outputs,
        "tokenizer": options.tokenizer,
        "device": options.device,
    }
    source = {key: value for key, value in asdict(options).items() if value not in (None, False, 0)}
    if target is None:
        if options.weights:
            raise UsageError(
                "MT116", "--weights needs a network", fix="microtome examine pkg.module:Net --weights FILE"
            )
        from microtome.reference import reference_subject

        say("no network was named: the embedded one, a small CNN on scanned digits")
        model: nn.Module
        data: Iterable[Any]
        model, data = reference_subject(seed)
        if options.data:
            from microtome.loading import load_data

            data = load_data(options.data, options.path)
        else:
            # Ink runs from none to all; nothing outside is a scan.
            keywords["bounds"] = bounds or (0.0, 1.0)
        source |= {"target": REFERENCE, "seed": seed}
        keywords["name"] = "digits CNN"
    else:
        if not options.data:
            raise UsageError(
                "MT116",
                f"{target} comes without data",
                fix="add --data pkg.module:attr, or a .npz file with x and y",
            )
        from microtome.loading import load_data, load_model

        model = load_model(
            target,
            options.weights,
            options.path,
            options.strip_prefix,
            trust_pickle=options.trust_pickle,
        )
        data = load_data(options.data, options.path)
        source["target"] = target
        keywords["name"] = target
    source["path"] = os.path.abspath(options.path or os.curdir)
    keywords["source"] = {key: _absolute(key, value) for key, value in source.items()}
    return model, data, {key: value for key, value in keywords.items() if value is not None}


def _absolute(key: str, value: Any) -> Any:
    """Files are remembered by their whole path: a run may be resumed from another folder."""
    if (
        key in ("weights", "data", "target", "tokenizer")
        and isinstance(value, str)
        and ":" not in value
        and (Path(value).is_file() or (key == "tokenizer" and Path(value).is_dir()))
    ):
        return os.path.abspath(value)
    return value
