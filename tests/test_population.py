"""Each member of a population ends as it would have alone, whatever program ran; what cannot be batched says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.data.digits import digits
from microtome.errors import UsageError
from microtome.population import (
    Population,
    Recipe,
    Recorder,
    Recording,
    SequentialWarning,
    every,
    geometric,
    orders,
    train,
)
from microtome.registry import instrument

torch.manual_seed(0)
X, Y = torch.randn(45, 6), torch.randint(0, 4, (45,))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def alone(model, optimizer, *, epochs, size, seed, x=X, y=Y, factor=None, loss=F.cross_entropy):
    """What a plain loop makes of one network, in the order a population would have used."""
    step = 0
    for epoch in range(epochs):
        for rows in orders([seed], epoch, len(x))[0].split(size):
            if factor is not None:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial"] * factor(step)
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
    return model


def furthest(model, population, index):
    member = population.member(index)
    own, other = model.state_dict(), member.state_dict()
    return max(float((own[k] - other[k]).abs().max()) for k, _ in model.named_parameters())


OPTIMIZERS = {
    "sgd": ({"optimizer": "sgd"}, lambda p, r: torch.optim.SGD(p, r)),
    "momentum": (
        {"optimizer": "sgd", "options": {"momentum": 0.9, "weight_decay": 0.01}},
        lambda p, r: torch.optim.SGD(p, r, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        {"optimizer": "sgd", "options": {"momentum": 0.9, "nesterov": True}},
        lambda p, r: torch.optim.SGD(p, r, momentum=0.9, nesterov=True),
    ),
    "adam": (
        {"optimizer": "adam", "options": {"weight_decay": 0.1}},
        lambda p, r: torch.optim.Adam(p, r, weight_decay=0.1),
    ),
    "adamw": (
        {"optimizer": "adamw", "options": {"weight_decay": 0.1}},
        lambda p, r: torch.optim.AdamW(p, r, weight_decay=0.1),
    ),
    "rmsprop": ({"optimizer": torch.optim.RMSprop}, lambda p, r: torch.optim.RMSprop(p, r)),
    "adagrad": ({"optimizer": torch.optim.Adagrad}, lambda p, r: torch.optim.Adagrad(p, r)),
    "nadam": ({"optimizer": torch.optim.NAdam}, lambda p, r: torch.optim.NAdam(p, r)),
}


@pytest.mark.parametrize("route", ["traced", "vmap", "sequential"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_member_equals_its_twin(name, route):
    ours, theirs = OPTIMIZERS[name]
    population = Population.of(mlp, seeds=[3, 4, 5])
    twins = [population.member(i) for i in range(3)]
    done = train(population, X, Y, Recipe(rate=0.02, epochs=3, batch_size=16, route=route, **ours))
    assert done.route == route and not done.note
    for i, (twin, seed) in enumerate(zip(twins, [3, 4, 5], strict=True)):
        alone(twin, theirs(twin.parameters(), 0.02), epochs=3, size=16, seed=seed)
        assert furthest(twin, population, i) < 2e-6


def test_rates_decays_momenta_and_labels_of_each_members_own():
    rates, decays, momenta = torch.tensor([0.1, 0.01]), torch.tensor([0.0, 0.1]), torch.tensor([0.0, 0.9])
    labels = torch.stack([Y, Y.flip(0)])
    population = Population.of(mlp, seeds=[0, 1])
    twins = [population.member(i) for i in range(2)]
    options = {"weight_decay": decays, "momentum": momenta}
    train(
        population,
        X,
        labels,
        Recipe(rate=rates, options=options, epochs=3, batch_size=20),
        private=(False, True),
    )
    for i, twin in enumerate(twins):
        optimizer = torch.optim.SGD(
            twin.parameters(), float(rates[i]), momentum=float(momenta[i]), weight_decay=float(decays[i])
        )
        alone(twin, optimizer, epochs=3, size=20, seed=i, y=labels[i])
        assert furthest(twin, population, i) < 1e-6


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_with_rates_and_decays_of_each_members_own(decoupled):
    rates, decays = torch.tensor([0.1, 0.01]), torch.tensor([0.0, 0.5])
    population = Population.of(mlp, seeds=[0, 1])
    twins = [population.member(i) for i in range(2)]
    name = "adamw" if decoupled else "adam"
    train(
        population,
        X,
        Y,
        Recipe(optimizer=name, rate=rates, options={"weight_decay": decays}, epochs=3, batch_size=20),
    )
    for i, twin in enumerate(twins):
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        alone(
            twin,
            kind(twin.parameters(), float(rates[i]), weight_decay=float(decays[i])),
            epochs=3,
            size=20,
            seed=i,
        )
        assert furthest(twin, population, i) < 5e-6


def test_a_schedule_and_a_shared_order():
    population = Population.of(mlp, seeds=[7, 8])
    twins = [population.member(i) for i in range(2)]
    train(
        population,
        X,
        Y,
        Recipe(
            rate=0.1, schedule=lambda step: 1 / (1 + step), epochs=2, batch_size=10, order="shared", seed=5
        ),
    )
    for i, twin in enumerate(twins):
        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        optimizer.param_groups[0]["initial"] = 0.1
        alone(twin, optimizer, epochs=2, size=10, seed=5, factor=lambda step: 1 / (1 + step))
        assert furthest(twin, population, i) < 1e-6


def test_batches_drawn_with_replacement():
    drawn = orders([3, 4], 0, 1000, drawn=True)
    assert abs(len(drawn[0].unique()) / 1000 - (1 - 1 / 2.718281828)) < 0.03 and not torch.equal(*drawn)
    population = Population.of(mlp, seeds=[3, 4])
    twin = population.member(1)
    train(population, X, Y, Recipe(rate=0.1, epochs=1, batch_size=15, order="drawn"))
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for rows in orders([4], 0, len(X), drawn=True)[0].split(15):
        optimizer.zero_grad()
        F.cross_entropy(twin(X[rows]), Y[rows]).backward()
        optimizer.step()
    assert furthest(twin, population, 1) < 1e-6


class Normed(nn.Module):
    """Batch norm in training mode: the forward writes into buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.gelu(self.norm(self.fc(x))))


def test_batch_norm_keeps_statistics_of_each_members_own():
    population = Population.of(Normed, seeds=[0, 1])
    twins = [population.member(i).train() for i in range(2)]
    done = train(population, X, Y, Recipe(rate=0.1, epochs=3, batch_size=15))
    assert done.route != "sequential"
    for i, twin in enumerate(twins):
        alone(twin, torch.optim.SGD(twin.parameters(), 0.1), epochs=3, size=15, seed=i)
        assert furthest(twin, population, i) < 1e-5
        member = population.member(i)
        assert torch.allclose(member.norm.running_mean, twin.norm.running_mean, atol=1e-6)
        assert int(member.norm.num_batches_tracked) == int(twin.norm.num_batches_tracked) == 9


class Branching(nn.Module):
    """Looks at a value: cannot be batched."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        y = self.fc(x)
        return y * 2 if float(y.sum()) > 0 else y


def test_what_cannot_be_batched_is_trained_one_after_another_and_says_so():
    population = Population.of(Branching, seeds=[0, 1, 2])
    twins = [population.member(i) for i in range(3)]
    with pytest.warns(SequentialWarning, match="one after another"):
        done = train(population, X, Y, Recipe(rate=0.1, epochs=2, batch_size=15))
    assert done.route == "sequential"
    assert done.note.startswith("members are trained one after another: ") and "\n" not in done.note
    for i, twin in enumerate(twins):
        alone(twin, torch.optim.SGD(twin.parameters(), 0.1), epochs=2, size=15, seed=i)
        assert furthest(twin, population, i) < 1e-6
    assert population.predict(X).shape == (3, 45, 4)


def test_dropout_is_drawn_anew_at_every_step_and_for_every_member():
    same = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    population = Population([same, same], seeds=[0, 0])
    seen = []
    train(
        population,
        X,
        Y,
        Recipe(rate=0.0, steps=4),
        observers=[(lambda m: seen.append(m.loss.clone()), every(1))],
    )
    losses = torch.stack(seen[1:])
    assert len(losses.unique()) == losses.numel()


def test_masks_hold():
    population = Population.of(mlp, seeds=[0, 1])
    mask = (torch.rand(2, 8, 6) > 0.5).float()
    population.mask({"0.weight": mask})
    train(population, X, Y, Recipe(optimizer="adam", rate=0.1, epochs=3, options={"weight_decay": 0.1}))
    weight = population.parameters["0.weight"]
    assert torch.equal(weight != 0, mask != 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", torch.optim.RMSprop])
def test_a_member_that_has_had_enough_stays_and_the_others_go_on(optimizer):
    ends = torch.tensor([3, 9, 5, 3, 7, 12])
    recipe = Recipe(optimizer=optimizer, rate=0.05, steps=10, batch_size=16)
    population = Population.of(mlp, seeds=range(6))
    done = train(population, X, Y, recipe, until=lambda moment: ends <= moment.step)
    assert done.steps.tolist() == [3, 9, 5, 3, 7, 10]
    for i, steps in enumerate([3, 9, 5, 3, 7, 10]):
        other = Population.of(mlp, seeds=range(6)).copy([i])
        train(other, X, Y, Recipe(optimizer=optimizer, rate=0.05, steps=steps, batch_size=16))
        assert furthest(other.member(0), population, i) < 1e-6


def test_members_at_once_changes_nothing():
    one, two = Population.of(mlp, seeds=range(5)), Population.of(mlp, seeds=range(5))
    train(one, X, Y, Recipe(rate=0.1, epochs=2, batch_size=16))
    train(two, X, Y, Recipe(rate=0.1, epochs=2, batch_size=16, members_at_once=2))
    assert torch.allclose(one.vectors(), two.vectors(), atol=1e-6)


def test_observers_see_step_zero_the_wanted_steps_and_the_end():
    steps = []
    recipe = Recipe(rate=0.1, steps=11, batch_size=20)
    train(
        Population.of(mlp, [0]),
        X,
        Y,
        recipe,
        observers=[(lambda m: steps.append((m.step, m.last)), every(4))],
    )
    assert steps == [(0, False), (4, False), (8, False), (11, True)]
    wants = geometric(1000, 10)
    assert wants(0) and wants(1) and wants(1000) and sum(map(wants, range(1001))) <= 11


def test_going_on_from_a_saved_state_is_as_if_nothing_had_happened(tmp_path):
    whole, half = Population.of(mlp, seeds=[1, 2]), Population.of(mlp, seeds=[1, 2])
    recipe = dict(optimizer="adam", rate=0.05, batch_size=16)
    train(whole, X, Y, Recipe(steps=10, **recipe))
    kept = {}
    train(half, X, Y, Recipe(steps=4, **recipe), observers=[(lambda m: kept.update(m.state()), every(4))])
    half.save(tmp_path / "half.safetensors")
    again = Population.of(mlp, seeds=[8, 9]).load(tmp_path / "half.safetensors")
    assert again.seeds == (1, 2)
    train(again, X, Y, Recipe(steps=10, **recipe), state=kept, start=4)
    assert torch.equal(again.vectors(), whole.vectors())


def test_a_population_learns_real_data_and_left_the_random_state_alone():
    ((x, y),) = digits("train", batch_size=2000)
    x = x.reshape(len(x), -1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    population = Population.of(
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), range(8)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    untrained = (population.predict(x).argmax(-1) == y).double().mean(1)
    train(population, x, y, Recipe(optimizer="adam", rate=0.005, epochs=5, batch_size=64))
    trained = (population.predict(x, batch_size=500).argmax(-1) == y).double().mean(1)
    assert trained.min() > 0.9 > 0.4 > untrained.max()


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        (Recipe(), (X, Y), "MT405 a recipe ends after epochs or after steps"),
        (Recipe(steps=1, rate=torch.ones(3)), (X, Y), r"MT405 rate has \[3\] values for 2 members"),
        (Recipe(steps=1), (X, Y[:-1]), "MT406 45 inputs and 44 targets"),
        (Recipe(steps=1, optimizer="adma"), (X, Y), "MT413 .*did you mean 'adam'"),
        (Recipe(steps=1, optimizer=torch.optim.LBFGS), (X, Y), "MT411 LBFGS cannot train a population"),
        (Recipe(steps=1, batch_size=0), (X, Y), "MT405 a batch of 0"),
    ],
)
def test_wrong_requests(recipe, given, words):
    with pytest.raises(UsageError, match=words):
        train(Population.of(mlp, [0, 1]), *given, recipe)


def test_wrong_populations(tmp_path):
    with pytest.raises(UsageError, match="MT401"):
        Population([])
    with pytest.raises(UsageError, match="MT402 member 1 has other parameters"):
        Population([nn.Linear(2, 2), nn.Linear(2, 3)])
    population = Population.of(mlp, [0, 1])
    with pytest.raises(UsageError, match="MT403 there is no parameter 'fc'"):
        population.mask({"fc": torch.ones(1)})
    with pytest.raises(UsageError, match=r"MT403 a mask \[5\] does not fit"):
        population.mask({"0.weight": torch.ones(5)})
    path = population.save(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="MT404"):
        Population.of(lambda: nn.Linear(3, 3), [0, 1]).load(path)


def digits_population():
    x, y = next(iter(digits("train", batch_size=300)))
    flat = x.reshape(len(x), -1)
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))  # noqa: E731
    return Population.of(build, range(3)), flat, y


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_recording_gives_back_what_was(tmp_path, on_disk):
    population, x, y = digits_population()
    recorder = Recorder(
        tmp_path / "run" if on_disk else None,
        probes={"some": (x[:50], y[:50])},
        measures={"norm": lambda p: p.vectors().norm(dim=1)},
    )
    seen = {}
    train(
        population,
        x,
        y,
        Recipe(optimizer="adam", rate=0.01, steps=10, batch_size=64),
        observers=[(recorder, every(5)), (lambda m: seen.update({m.step: m.population.copy()}), every(5))],
    )
    kept = Recording.open(tmp_path / "run", population) if on_disk else recorder.recording
    assert kept.steps == [0, 5, 10]
    outputs = torch.stack([seen[step].predict(x[:50]) for step in kept.steps])
    assert torch.equal(kept.correct("some"), outputs.argmax(-1) == y[:50])
    losses = torch.stack(
        [F.cross_entropy(o.flatten(0, 1), y[:50].repeat(3), reduction="none") for o in outputs]
    )
    assert torch.allclose(kept.loss("some").flatten(1), losses, atol=1e-5)
    assert torch.allclose(kept.value("norm")[2], population.vectors().norm(dim=1))
    assert kept.accuracy("some").shape == (3, 3)
    with pytest.raises(UsageError, match="MT432 'norms' was not recorded; did you mean 'norm'"):
        kept.value("norms")
    if on_disk:
        assert torch.equal(kept.population(5).vectors(), seen[5].vectors())
        with pytest.raises(UsageError, match="MT433 step 7 was not recorded"):
            kept.population(7)
    else:
        with pytest.raises(UsageError, match="MT433 this recording keeps no networks"):
            kept.population(5)


def test_training_resumes_from_a_recording(tmp_path):
    recipe = {"optimizer": "adam", "rate": 0.01, "batch_size": 64}
    whole, x, y = digits_population()
    train(whole, x, y, Recipe(steps=12, **recipe))
    part, *_ = digits_population()
    train(part, x, y, Recipe(steps=6, **recipe), observers=[(Recorder(tmp_path), every(3))])
    population, state, step = Recording.open(tmp_path, part).resume()
    assert step == 6
    train(population, x, y, Recipe(steps=12, **recipe), state=state, start=step)
    assert torch.equal(population.vectors(), whole.vectors())


def test_findings_of_each_member_along_training():
    population, x, y = digits_population()
    recorder = Recorder(instruments=[instrument("reliability/accuracy")()], data=[(x, y)], members=[0, 2])
    train(population, x, y, Recipe(rate=0.5, steps=20), observers=[(recorder, every(10))])
    found = recorder.recording.findings["reliability/accuracy"]
    assert [(step, member) for step, member, _ in found] == [
        (0, 0),
        (0, 2),
        (10, 0),
        (10, 2),
        (20, 0),
        (20, 2),
    ]
    right = (population.predict(x).argmax(-1) == y).double().mean(1)
    assert found[-1][2].value == pytest.approx(float(right[2]))
    with pytest.raises(UsageError, match="MT434"):
        Recorder(instruments=[instrument("reliability/accuracy")()])


def test_a_folder_without_a_recording(tmp_path):
    with pytest.raises(UsageError, match="MT431"):
        Recording.open(tmp_path)


def test_a_network_that_holds_a_plain_tensor_is_still_batched():
    """The tracer refuses a tensor that is neither parameter nor buffer; vmap takes it."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.shift = nn.Linear(4, 3), torch.arange(4.0)

        def forward(self, x):
            return self.linear(x + self.shift)

    population = Population.of(Shifted, range(3))
    done = train(population, torch.randn(8, 4), torch.randint(3, (8,)), Recipe(steps=2))
    assert done.route == "vmap"
