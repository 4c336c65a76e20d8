"""Checkpoints examined one after another give what each gives alone, as a curve."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from microtome.cli.main import run as command
from microtome.data.digits import digits
from microtome.errors import MicrotomeError, UsageError
from microtome.examination import examine
from microtome.figures import figure_rows, problems
from microtome.nn.digits_cnn import DigitsCNN
from microtome.population import Population, Recipe, Recorder, every, train
from microtome.store import open_store
from microtome.trajectory import checkpoints, examine_checkpoints, step_of

ONLY = ("reliability/accuracy", "represent/feature_rank")


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    x, y = next(iter(digits("train", batch_size=400)))
    population = Population.of(network, [0, 1])
    recipe = Recipe(optimizer="adam", rate=0.01, epochs=4, batch_size=50)
    train(population, x, y, recipe, observers=[(Recorder(folder), every(16))])
    return folder, population


def test_a_recording_is_a_subject(recorded):
    folder, population = recorded
    data = list(digits("test"))
    exam = examine_checkpoints(network(), data, folder, member=1, only=ONLY)
    assert exam.status == "complete" and set(exam.findings) == set(ONLY)
    alone = examine(population.member(1).eval(), data, only=ONLY, calibration="none")
    for name in ONLY:
        found = exam[name]
        assert found.value == alone[name].value
        steps = [row[0] for row in found.tables["trajectory"].rows]
        assert steps == [0, 16, 32]
        drawn = figure_rows(found.figures["trajectory"].spec)
        assert drawn[-1][found.headline] == pytest.approx(found.value, rel=1e-5)  # figures keep six digits
        assert not problems(found.figures["trajectory"])
        change = found.quantities[f"change of {found.headline}"].value
        assert change == pytest.approx(found.value - drawn[0][found.headline], abs=1e-4)
    assert exam["accuracy"].quantities["change of accuracy"].value > 0.3


def test_files_named_by_step_are_checkpoints(tmp_path):
    model = network()
    for step in (200, 0, 30):
        with torch.no_grad():
            model[1].bias.fill_(step)
        save_file(model.state_dict(), tmp_path / f"epoch1-step_{step}.safetensors")
    found = checkpoints(tmp_path, network())
    assert [step for step, _ in found] == [0, 30, 200]
    assert float(found[2][1]()[1].bias.detach()[0]) == 200


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch_3_loss_0.53", 3),
        ("epoch=2-step=400-val_loss=0.12", 400),
        ("resnet18_20", 20),
        ("model_10_0.5", 10),
        ("checkpoint-500", 500),
        ("ckpt7", 7),
        ("step_200", 200),
        ("best", None),
        ("best_0.97", None),
    ],
)
def test_the_step_is_no_loss_and_no_size(name, step):
    assert step_of(name) == step


def test_checkpoints_as_a_trainer_leaves_them(tmp_path):
    """A folder a step, and beside them what is no checkpoint of the course."""
    model = network()
    for step in (500, 1000):
        with torch.no_grad():
            model[1].bias.fill_(step)
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        torch.save({}, folder / "optimizer.pt")
    torch.save(model.state_dict(), tmp_path / "best.pt")
    said: list[str] = []
    found = checkpoints(tmp_path, network(), told=said.append)
    assert [(step, float(load()[1].bias.detach()[0])) for step, load in found] == [(500, 500), (1000, 1000)]
    assert said == ["left out, for no step is in the name: best.pt"]


def test_the_command_examines_checkpoints(tmp_path, capsys):
    for step in (0, 5):
        torch.manual_seed(step)
        save_file(DigitsCNN().state_dict(), tmp_path / f"step_{step}.safetensors")
    store = ["--store", str(tmp_path / "store")]
    words = ["examine", "--checkpoints", str(tmp_path), "--only", "accuracy", *store]
    assert command(words) == 0
    shown = capsys.readouterr()
    assert "checkpoint 5" in shown.err and "accuracy" in shown.out
    assert command(["show", "latest", *store]) == 0


@pytest.mark.parametrize(
    ("files", "member", "words"),
    [
        ([], 0, "MT441 the folder holds no checkpoints"),
        (["last.safetensors"], 0, "MT442 the step cannot be read"),
        (["a1.safetensors", "b1.safetensors"], 0, "MT442 the step cannot be read"),
    ],
)
def test_wrong_folders(tmp_path, files, member, words):
    for name in files:
        save_file(network().state_dict(), tmp_path / name)
    with pytest.raises(UsageError, match=words):
        checkpoints(tmp_path, network(), member)


def test_wrong_members_and_no_folder(recorded, tmp_path):
    with pytest.raises(UsageError, match="MT442 there is no member 2"):
        checkpoints(recorded[0], network(), 2)
    with pytest.raises(UsageError, match="MT441 there is no such folder"):
        checkpoints(tmp_path / "nothing", network())


def test_a_run_is_not_resumed_as_checkpoints(tmp_path, capsys):
    assert (
        command(["examine", "--resume", "latest", "--checkpoints", str(tmp_path), "--store", str(tmp_path)])
        == 2
    )
    assert "MT117" in capsys.readouterr().err


def test_what_is_measured_outlives_a_checkpoint_that_cannot_be_read(tmp_path):
    model, store = network(), str(tmp_path / "store")
    for step in (1, 2):
        save_file(model.state_dict(), tmp_path / f"step_{step}.safetensors")
    (tmp_path / "step_3.safetensors").write_bytes(b"no weights")
    data, seen = list(digits("test")), []

    def told(said: str) -> None:
        if said == "checkpoint 3":  # nothing has ended, and two checkpoints are there already
            with open_store(store) as opened:
                seen.extend(opened.list())

    with pytest.raises(MicrotomeError):
        examine_checkpoints(model, data, tmp_path, only=ONLY, store=store, told=told)
    assert [one.status for one in seen] == ["running"]
    with open_store(store) as opened:
        (row,) = opened.list()
        kept = opened.load(row.id)
    assert kept.status == "stopped" and row.id == seen[0].id
    assert [r[0] for r in kept["accuracy"].tables["trajectory"].rows] == [1, 2]
