"""The project's own files agree with one another."""

import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))


def normal_name(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def lines(path):
    stripped = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in stripped if line]


def names(path):
    return {normal_name(line) for line in lines(path) if not line.startswith("-")}


PINS = {normal_name(line): line for line in lines(ROOT / "constraints.txt")}


def test_torch_is_pinned_first_and_everything_exactly():
    pins = lines(ROOT / "constraints.txt")
    assert pins[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+", pin) for pin in pins)
    assert len(PINS) == len(pins)


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_what_is_required_is_pinned(path):
    assert "-c constraints.txt" in lines(path)
    assert names(path) <= set(PINS)


def test_the_package_asks_for_lower_bounds_only():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (requirement for group in groups for requirement in group):
        assert re.fullmatch(r"[A-Za-z0-9._\[\]-]+>=[0-9.]+", requirement), requirement


@pytest.mark.parametrize(
    ("extra", "file"),
    [(None, "requirements.txt"), ("test", "requirements-test.txt"), ("dev", "requirements-dev.txt")],
)
def test_requirement_files_say_what_the_package_says(extra, file):
    asked = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    assert {normal_name(requirement) for requirement in asked} == names(ROOT / file)


def example_modules():
    """The leaf and the specimen of docs/add-a-method.md, as modules."""
    text = (ROOT / "docs" / "add-a-method.md").read_text()
    found = re.findall(r"`src/(microtome/\w+/(?:\w+/)?\w+)\.py`.*?```python\n(.*?)```", text, flags=re.DOTALL)
    for path, code in found:
        module = types.ModuleType(path.replace("/", "."))
        sys.modules[module.__name__] = module
        exec(compile(code, f"docs/add-a-method.md: {path}", "exec"), vars(module))
        yield module


def test_the_documented_example_reads_its_specimen_right():
    from microtome.passes import run_instruments

    leaf, specimen = example_modules()
    made = specimen.three_in_four()
    (truth,) = made.truths
    finding = run_instruments(made.subject, {leaf.Brier.name(): leaf.Brier()})[truth.instrument]
    assert finding.status == "measured", finding.reason
    assert abs(finding.value - truth.value) <= truth.tolerance
    assert finding.interval[0] < truth.value < finding.interval[1]
