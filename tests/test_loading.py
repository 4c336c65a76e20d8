"""Every error of loading says what, where and what to do; no pickle is run that was not trusted."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from microtome.checkpoints import convert
from microtome.errors import MicrotomeError, SubjectError, UsageError
from microtome.loading import ArrayBatches, load_data, load_model

NETS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc1 = nn.Linear(3, width)
        self.fc2 = nn.Linear(width, 2)
    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(3, 3, bias=False)
        self.outward = nn.Linear(3, 3, bias=False)
        self.outward.weight = self.inward.weight
    def forward(self, x):
        return self.outward(self.inward(x))

class Holder:
    inner = Net()

def build():
    return Net()

def sized(width):
    return Net(width)

def broken():
    raise RuntimeError("no such flavour")

def gives_state():
    return Net().state_dict()

def gives_list():
    return [1, 2]

net = Net()
state = net.state_dict()

x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))
pairs = (x, y)
batches = [(x, y)]
dataset = TensorDataset(x, y)
loader = DataLoader(dataset, batch_size=5)
once = iter(batches)

def stream():
    yield x[:5], y[:5]
    yield x[5:], y[5:]

def make_loader():
    return loader
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the module ``specimen_nets``; forgotten afterwards."""
    (tmp_path / "specimen_nets.py").write_text(NETS)
    (tmp_path / "needy.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "raising.py").write_text("value = 1\nraise ValueError('half done')\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in ("specimen_nets", "needy", "wrong", "raising"):
        sys.modules.pop(name, None)


def refusal(code: str, *parts: str) -> pytest.RaisesExc[MicrotomeError]:
    """An error with this code whose one sentence holds all the parts."""

    def matches(error: MicrotomeError) -> bool:
        text = str(error)
        assert error.code == code, text
        assert "\n" not in text
        assert all(part in text for part in parts), f"{parts} not all in: {text}"
        return True

    return pytest.RaisesExc(MicrotomeError, check=matches)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


# ---------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    "target", ["specimen_nets:Net", "specimen_nets:build", "specimen_nets:net", "specimen_nets:Holder.inner"]
)
def test_a_class_a_function_and_an_instance_all_give_the_network(folder: Path, target: str) -> None:
    assert load_model(target)(torch.zeros(1, 3)).shape == (1, 2)


def test_a_folder_can_be_named(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert isinstance(load_model("specimen_nets:Net", search_path=folder), nn.Module)
    with refusal("MT100", "--path", "no_such_folder"):
        load_model("specimen_nets:Net", search_path="no_such_folder")


@pytest.mark.parametrize(
    ("target", "code", "parts"),
    [
        ("specimen_net:build", "MT101", ("cannot import", "did you mean 'specimen_nets:build'")),
        (
            "specimen_nets:biuld",
            "MT101",
            ("no attribute 'biuld'", "specimen_nets.py", "did you mean 'build'"),
        ),
        ("specimen_nets", "MT101", ("names a module", "specimen_nets:NAME")),
        ("specimen_nets.py:build", "MT101", ("is a file", "write specimen_nets:build")),
        ("what is this", "MT101", ("neither a file nor pkg.module:attr",)),
        ("absent.pt2", "MT100", ("does not exist",)),
        ("absent.safetensors", "MT100", ("does not exist",)),
        ("specimen_nets:sized", "MT102", ("needs arguments (width)", "without arguments")),
        ("specimen_nets:gives_list", "MT102", ("gives a list", "torch.nn.Module")),
        ("specimen_nets:gives_state", "MT102", ("dictionary of 4 tensors", "--weights")),
        ("specimen_nets:state", "MT102", ("is a dictionary of 4 tensors", "--weights")),
        ("specimen_nets:broken", "MT108", ("RuntimeError: no such flavour", "specimen_nets.py:")),
        ("needy:Net", "MT107", ("a_package_nobody_has", "not installed", "needy.py:1")),
        ("wrong:Net", "MT107", ("fails to import", "SyntaxError", "wrong.py:1")),
        ("raising:Net", "MT107", ("half done", "raising.py:2")),
    ],
)
def test_what_is_no_network_is_told_apart(
    folder: Path, target: str, code: str, parts: tuple[str, ...]
) -> None:
    with refusal(code, *parts):
        load_model(target)


def test_a_failing_builder_is_the_subjects_fault(folder: Path) -> None:
    with pytest.raises(SubjectError):
        load_model("specimen_nets:broken")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_given_as_a_network_are_counted(folder: Path, name: str) -> None:
    state = load_model("specimen_nets:Net").state_dict()
    save_file(state, name) if name.endswith("safetensors") else torch.save(state, name)
    with refusal("MT102", f"{name} holds 4 tensors, no network", f"pkg.module:Net --weights {name}"):
        load_model(name)


def test_a_pickled_network_given_as_a_network_is_explained(folder: Path) -> None:
    torch.save(load_model("specimen_nets:Net"), "whole.pt")
    with refusal("MT102", "specimen_nets.Net", "microtome convert whole.pt whole.safetensors --trust-pickle"):
        load_model("whole.pt")


# ---------------------------------------------------------------------------------------------- programs


@pytest.fixture
def program(folder: Path) -> Path:
    model = load_model("specimen_nets:Net").eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(
        torch.export.export(model, (torch.randn(4, 3),), dynamic_shapes=({0: batch},)), "net.pt2"
    )
    return folder / "net.pt2"


def test_an_exported_program_runs_and_bears_eval(program: Path) -> None:
    model = load_model("net.pt2")
    assert model.eval() is model
    assert model.train() is model
    assert model(torch.zeros(7, 3)).shape == (7, 2)


def test_an_exported_program_with_a_pickle_inside_is_refused(program: Path) -> None:
    trace = program.parent / "was_run"
    with zipfile.ZipFile(program) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    torch.save(Evil(trace), "evil.pt")
    (sample,) = (name for name in records if name.endswith("sample_inputs/model.pt"))
    records[sample] = Path("evil.pt").read_bytes()
    with zipfile.ZipFile("evil.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with refusal("MT103", "posix.mkdir" if os.name == "posix" else "mkdir", "--trust-pickle"):
        load_model("evil.pt2")
    assert not trace.exists()


def test_a_file_that_is_no_program_is_told(folder: Path) -> None:
    Path("net.pt2").write_bytes(b"nothing of the kind")
    with refusal("MT105", "not an exported program", "torch.export.save"):
        load_model("net.pt2")


# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "anything"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_arrive(folder: Path, name: str, nest: str | None) -> None:
    state = load_model("specimen_nets:Net").state_dict()
    if name.endswith(".safetensors"):
        save_file(state, name)
    else:
        torch.save(state if nest is None else {nest: state, "epoch": 3}, name)
    loaded = load_model("specimen_nets:Net", weights=name)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_malicious_pickle_is_refused_by_name_and_never_run(folder: Path) -> None:
    trace = folder / "was_run"
    torch.save({"fc1.weight": torch.zeros(4, 3), "x": Evil(trace)}, "evil.pt")
    with refusal("MT103", "refused", "posix.mkdir", "microtome convert", "--trust-pickle"):
        load_model("specimen_nets:Net", weights="evil.pt")
    with refusal("MT102", "posix.mkdir"):
        load_model("evil.pt")
    with refusal("MT103", "posix.mkdir"):
        convert("evil.pt", "out.safetensors")
    assert not trace.exists()
    assert not Path("out.safetensors").exists()


def test_a_bare_malicious_pickle_is_refused_too(folder: Path) -> None:
    trace = folder / "was_run"
    Path("evil.pkl").write_bytes(pickle.dumps(Evil(trace)))
    with refusal("MT103", "posix.mkdir"):
        load_model("specimen_nets:Net", weights="evil.pkl")
    assert not trace.exists()


def test_a_trusted_pickle_is_run(folder: Path) -> None:
    model = load_model("specimen_nets:Net")
    torch.save(model, "whole.pt")
    with refusal("MT103", "specimen_nets.Net"):
        load_model("specimen_nets:Net", weights="whole.pt")
    loaded = load_model("specimen_nets:Net", weights="whole.pt", trust_pickle=True)
    assert torch.equal(loaded.get_parameter("fc1.weight"), model.get_parameter("fc1.weight"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.backbone."])
def test_a_wrappers_prefix_is_recognised_and_stripped(folder: Path, prefix: str) -> None:
    state = load_model("specimen_nets:Net").state_dict()
    torch.save({prefix + key: value for key, value in state.items()}, "w.pt")
    with refusal("MT104", "4 of 4 keys are missing", f"--strip-prefix {prefix}"):
        load_model("specimen_nets:Net", weights="w.pt")
    loaded = load_model("specimen_nets:Net", weights="w.pt", strip_prefix=prefix)
    assert torch.equal(loaded.state_dict()["fc2.bias"], state["fc2.bias"])


def test_weights_that_do_not_fit_name_the_keys(folder: Path) -> None:
    state = dict(load_model("specimen_nets:Net").state_dict())
    torch.save({k: v for k, v in state.items() if k != "fc2.bias"} | {"fc3.bias": torch.zeros(2)}, "w.pt")
    with refusal(
        "MT104", "1 of 4 keys are missing (fc2.bias)", "1 are not in the network (fc3.bias)", "w.pt"
    ):
        load_model("specimen_nets:Net", weights="w.pt")
    torch.save(state | {"fc1.weight": torch.zeros(5, 3)}, "w.pt")
    with refusal("MT104", "fc1.weight is [5, 3], the network has [4, 3]"):
        load_model("specimen_nets:Net", weights="w.pt")
    with refusal("MT104", "--strip-prefix nope. matches none of the 4 keys"):
        load_model("specimen_nets:Net", weights="w.pt", strip_prefix="nope.")
    with refusal("MT104", "no weights", "--weights FILE"):
        load_model("specimen_nets:Net", strip_prefix="nope.")


def test_tied_names_need_be_stored_once(folder: Path) -> None:
    save_file({"inward.weight": torch.eye(3)}, "tied.safetensors")
    loaded = load_model("specimen_nets:Tied", weights="tied.safetensors")
    assert torch.equal(loaded.state_dict()["outward.weight"], torch.eye(3))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_files_are_told(folder: Path, name: str) -> None:
    Path(name).write_bytes(b"\x08\x00garbage that is neither")
    with refusal("MT105", f"{name} is not a readable"):
        load_model("specimen_nets:Net", weights=name)


def test_a_checkpoint_without_tensors_says_what_it_holds(folder: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.5}, "w.pt")
    with refusal("MT105", "no named tensors", "epoch, loss", "state_dict"):
        load_model("specimen_nets:Net", weights="w.pt")


def test_a_missing_file_names_its_neighbours(folder: Path) -> None:
    torch.save({}, "weights.pt")
    with refusal("MT100", "does not exist", "did you mean 'weights.pt'"):
        load_model("specimen_nets:Net", weights="wieghts.pt")


# ---------------------------------------------------------------------------------------------- converting


def test_convert_keeps_every_name_and_says_what_it_left(folder: Path) -> None:
    model = load_model("specimen_nets:Tied")
    torch.save({"state_dict": model.state_dict(), "epoch": 7}, "ckpt.pt")
    done = convert("ckpt.pt", "out.safetensors")
    assert (done.tensors, done.nested_under, done.left_out) == (2, "state_dict", ("epoch",))
    assert done.copied == ("outward.weight",)
    assert "epoch" in done.text()
    loaded = load_model("specimen_nets:Tied", weights="out.safetensors")
    assert torch.equal(loaded.state_dict()["inward.weight"], model.state_dict()["inward.weight"])


def test_convert_takes_a_whole_network_that_is_trusted(folder: Path) -> None:
    torch.save(load_model("specimen_nets:Net"), "whole.pt")
    done = convert("whole.pt", "out.safetensors", trust=True)
    assert done.nested_under == "a whole Net"
    assert done.tensors == 4


def test_convert_writes_where_it_may_and_only_there(folder: Path) -> None:
    torch.save({"w": torch.zeros(2)}, "w.pt")
    with refusal("MT106", "does not end in .safetensors", "write out.safetensors"):
        convert("w.pt", "out.pt")
    convert("w.pt", "out.safetensors")
    with refusal("MT106", "exists already", "--overwrite"):
        convert("w.pt", "out.safetensors")
    convert("w.pt", "out.safetensors", overwrite=True)
    with refusal("MT106", "cannot write"):
        convert("w.pt", "no_folder/out.safetensors")


def test_a_view_does_not_drag_its_storage_along(folder: Path) -> None:
    torch.save({"w": torch.zeros(1000, 1000)[:1]}, "w.pt")
    assert convert("w.pt", "w.safetensors").bytes < 10_000


# ---------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", ["pairs", "batches", "dataset", "loader", "stream", "make_loader"])
def test_data_can_be_read_twice(folder: Path, name: str) -> None:
    data = load_data(f"specimen_nets:{name}")
    for _ in range(2):
        assert sum(len(y) for _, y in data) == 10


def test_a_loader_is_taken_as_it_is(folder: Path) -> None:
    data = load_data("specimen_nets:loader")
    assert isinstance(data, DataLoader)
    assert data.batch_size == 5


@pytest.mark.parametrize(
    ("target", "code", "parts"),
    [
        ("specimen_nets:once", "MT109", ("read only once", "name the function")),
        ("specimen_nets:net", "MT109", ("is a Net, not batches",)),
        ("specimen_nets:loadr", "MT101", ("did you mean 'loader'",)),
        ("weights.pt", "MT109", (".npz or .safetensors",)),
        ("absent.npz", "MT100", ("does not exist",)),
    ],
)
def test_what_is_no_data_is_told(folder: Path, target: str, code: str, parts: tuple[str, ...]) -> None:
    with refusal(code, *parts):
        load_data(target)


def test_arrays_in_files(folder: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300, dtype=np.int32)
    np.savez("d.npz", x=x, y=y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, "d.safetensors")
    for name in ("d.npz", "d.safetensors"):
        data = load_data(name)
        assert isinstance(data, ArrayBatches)
        assert len(data) == 2
        assert data.x.dtype == torch.float32
        assert data.y is not None
        assert data.y.dtype == torch.int64
        assert [len(a) for a, _ in data] == [256, 44]


def test_arrays_that_do_not_do_are_told(folder: Path) -> None:
    np.savez("odd.npz", images=np.zeros(3))
    with refusal("MT109", "no array x", "it holds images", "name the inputs x"):
        load_data("odd.npz")
    np.savez("uneven.npz", x=np.zeros((3, 1)), y=np.zeros(2))
    with refusal("MT201", "x holds 3 rows and y 2"):
        load_data("uneven.npz")
    trace = folder / "was_run"
    np.savez("evil.npz", x=np.array([Evil(trace)], dtype=object))
    with refusal("MT103", "pickled objects"):
        load_data("evil.npz")
    assert not trace.exists()
    Path("torn.npz").write_bytes(b"PK torn")
    with refusal("MT109", "cannot be read"):
        load_data("torn.npz")


def test_usage_errors_leave_with_two(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_model("specimen_net:build")
    assert caught.value.exit_status == 2


def test_a_file_inside_a_package_is_named_by_the_package(tmp_path):
    (tmp_path / "src" / "mine" / "deep").mkdir(parents=True)
    for folder in ("mine", "mine/deep"):
        (tmp_path / "src" / folder / "__init__.py").touch()
    with pytest.raises(UsageError, match=r"write mine\.deep\.nets:build --path src$"):
        load_model("src/mine/deep/nets.py:build", search_path=tmp_path)
    with pytest.raises(UsageError, match=r"write nets:NAME --path other$"):
        load_model("other/nets.py", search_path=tmp_path)


def test_data_in_files_of_other_kinds(tmp_path):
    (tmp_path / "rows.csv").write_text("1,2")
    with refusal("MT109", "no file of arrays", "pkg.module:attr"):
        load_data(str(tmp_path / "rows.csv"))
    with refusal("MT109", "a folder", "pkg.module:attr"):
        load_data(str(tmp_path))
    np.savez(tmp_path / "words.npz", x=np.zeros((2, 3)), y=np.array(["cat", "dog"]))
    with refusal("MT109", "no number", "class numbers"):
        load_data(str(tmp_path / "words.npz"))
