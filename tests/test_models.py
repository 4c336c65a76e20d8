"""Networks as users have them are understood and measured unchanged."""

from __future__ import annotations

import copy

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asking import read
from networks import CASES, ROWS, Case, cut

import microtome as mt
from microtome.errors import SubjectError
from microtome.folds import Collect, Moments
from microtome.laws.state import unchanged
from microtome.registry import instrument_names
from microtome.signals import labels, logits, loss, prediction_ids
from microtome.subject import Subject

BY_NAME = {case.name: case for case in CASES}
REQUIRES = {
    "hf_bert": "transformers",
    "hf_gpt2": "transformers",
    "gcn": "torch_geometric",
    "gin": "torch_geometric",
    "gin_shuffled": "torch_geometric",
}


def built(case: Case):
    if case.name in REQUIRES:
        pytest.importorskip(REQUIRES[case.name], reason="an optional dependency brings this kind of network")
    return case.build()


def named(name: str) -> Subject:
    return Subject(*built(BY_NAME[name]))


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_what_it_is_is_inferred_and_said(case):
    model, data = built(case)
    subject = Subject(model, data)
    assert (subject.task.kind, subject.classes) == (case.task, case.classes)
    assert case.says in "; ".join(subject.statements)
    assert subject.task.statement in subject.statements
    assert all("\n" not in statement for statement in subject.statements)


@pytest.mark.parametrize("case", [c for c in CASES if c.task != "unlabelled"], ids=lambda case: case.name)
def test_predictions_are_counted_once_however_the_data_is_cut(case):
    subject = Subject(*built(case))
    ids, values, _ = read(subject, Collect(signals=(prediction_ids, loss, logits)))
    assert len(ids) == len(ids.unique()) == case.predictions
    assert bool(torch.isfinite(values).all())
    again, small, _ = read(subject, Collect(signals=(prediction_ids, loss, logits)), size=5)
    assert torch.equal(ids, again)
    if case.name not in ("functional_dropout", "early_exit"):  # one draws, the other looks at the whole batch
        tolerance = 0.05 if case.name == "bfloat16" else 1e-5
        torch.testing.assert_close(values, small, rtol=tolerance, atol=tolerance)


@every_case
def test_every_instrument_measures_or_refuses_and_leaves_the_model_as_found(case):
    model, data = built(case)
    kept = [] if case.name == "gin_shuffled" else data  # whose batches differ at every look
    with unchanged(model, kept):
        exam = mt.examine(model, data)
    for finding in exam:
        assert finding.status in ("measured", "refused"), f"{finding.instrument}: {finding.reason}"
        assert finding.status == "measured" or len(finding.reason) > 10
    measured = {f.instrument for f in exam if f.status == "measured"}
    assert "compress/cost" in measured
    if BY_NAME[case.name].task not in ("regression", "multilabel", "unlabelled"):
        assert "reliability/accuracy" in measured
        assert exam["accuracy"].coverage.rows == exam["accuracy"].coverage.rows_total
    assert set(exam.findings) == set(instrument_names())
    assert exam.status == "complete"


# ------------------------------------------------------------------------- losses, by the model's own hand


def mean_loss(name: str) -> float:
    return float(read(named(name), Moments(signals=(loss,))).mean)


def batches(name: str):
    model, data = built(BY_NAME[name])
    return model.eval(), list(data)


def weighted(pairs: list[tuple[torch.Tensor, int]]) -> float:
    return float(sum(float(v) * n for v, n in pairs) / sum(n for _, n in pairs))


@torch.no_grad()
def test_bert_with_padding_gives_the_loss_it_computes_itself():
    model, data = batches("hf_bert")
    assert mean_loss("hf_bert") == pytest.approx(
        weighted([(model(**b).loss, len(b["labels"])) for b in data]), 1e-5
    )


@torch.no_grad()
def test_gpt2_with_ignored_labels_gives_the_loss_it_computes_itself():
    model, data = batches("hf_gpt2")
    own = weighted([(model(**b).loss, int((b["labels"][:, 1:] != -100).sum())) for b in data])
    assert mean_loss("hf_gpt2") == pytest.approx(own, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nano_gpt", "nano_gpt_all_positions"])
def test_a_plain_gpt_gives_the_loss_it_computes_itself(name):
    model, data = batches(name)
    assert mean_loss(name) == pytest.approx(weighted([(model(x, y)[1], y.numel()) for x, y in data]), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("resnet", lambda out, y: F.cross_entropy(out, y)),
        ("train_mode", lambda out, y: F.cross_entropy(out, y)),
        ("in_place_first", lambda out, y: F.cross_entropy(out, y)),
        ("segmentation", lambda out, y: F.cross_entropy(out, y)),
        ("tagging", lambda out, y: F.cross_entropy(out.movedim(-1, 1), y)),
        ("lstm", lambda out, y: F.cross_entropy(out, y)),
        ("gru_data_time_first", lambda out, y: F.cross_entropy(out, y)),
        ("multilabel", lambda out, y: F.binary_cross_entropy_with_logits(out, y)),
        ("one_hot", lambda out, y: F.cross_entropy(out, y)),
        ("regression_column", lambda out, y: F.mse_loss(out, y)),
        ("regression_flat", lambda out, y: F.mse_loss(out, y)),
        ("autoencoder", lambda out, y: F.mse_loss(out, y)),
        ("binary_single_logit", lambda out, y: F.binary_cross_entropy_with_logits(out, y)),
        ("binary_flat_logit", lambda out, y: F.binary_cross_entropy_with_logits(out, y.float())),
        ("binary_probability", lambda out, y: F.binary_cross_entropy(out, y)),
        ("probabilities", lambda out, y: F.nll_loss(out.log(), y)),
        ("label_column", lambda out, y: F.cross_entropy(out, y[:, 0])),
        ("exported", lambda out, y: F.cross_entropy(out, y)),
        ("exported_fixed_batch", lambda out, y: F.cross_entropy(out, y)),
        ("batch_dependent", lambda out, y: F.cross_entropy(out, y)),
        ("float64", lambda out, y: F.cross_entropy(out, y)),
    ],
)
def test_the_loss_is_the_usual_one(name, own):
    model, data = built(BY_NAME[name])
    if not name.startswith("exported"):
        model.eval()
    found = []
    for x, y in data:
        count = (
            int((y != -100).sum()) if name == "segmentation" else y.numel() if name == "tagging" else len(y)
        )
        found.append((own(model(x.clone()), y), count))
    assert mean_loss(name) == pytest.approx(weighted(found), 1e-5)


@torch.no_grad()
def test_nodes_of_the_mask_and_no_others_are_examples():
    model, (graph,) = batches("gcn")
    found = read(named("gcn"), Collect(signals=(prediction_ids, logits, labels)))
    expected = model(graph.x, graph.edge_index)[graph.test_mask]
    assert torch.equal(found[0], torch.arange(9))
    torch.testing.assert_close(found[1], expected)
    assert torch.equal(found[2], graph.y[graph.test_mask])


@torch.no_grad()
def test_graphs_of_a_shuffling_loader_are_read_in_their_own_order():
    model, _ = batches("gin_shuffled")
    expected = []
    for graph in named("gin_shuffled").data:
        expected.append(model(graph))
    for name in ("gin", "gin_shuffled"):
        found = read(named(name), Collect(signals=(prediction_ids, logits)))
        torch.testing.assert_close(found[1], torch.cat(expected))


def test_a_node_can_be_chosen_and_the_graph_stays_whole():
    from microtome.folds import Rows

    every = read(named("gcn"), Collect(signals=(prediction_ids, logits)))
    one = read(named("gcn"), Collect(signals=(prediction_ids, logits), over=Rows((4,))))
    assert one[0].tolist() == [4]
    torch.testing.assert_close(one[1][0], every[1][4])


# --------------------------------------------------------------------------------------------- layers


def test_calls_are_layers_not_modules():
    subject = named("shared_weights")
    assert [layer.name for layer in subject.layers] == [
        "fc",
        "relu",
        "fc#2",
        "F.relu",
        "again",
        "relu#2",
        "head",
    ]
    assert subject.layer("fc#2").parameters == ("fc.weight", "fc.bias")
    assert subject.layer("again").parameters == ("fc.weight", "again.bias")


def test_an_exported_program_has_the_layers_it_was_exported_with():
    subject = named("exported")
    assert [(x.name, x.operation) for x in subject.layers] == [
        ("conv", "Conv2d"),
        ("norm", "BatchNorm2d"),
        ("relu", "relu"),
        ("head", "Linear"),
    ]
    assert subject.layer("conv").parameters == ("conv.weight", "conv.bias")


@pytest.mark.parametrize(("name", "layer"), [("gru_time_first", "cell"), ("lstm_tokens_time_first", "embed")])
def test_examples_of_recurrent_layers_are_found_on_dimension_1(name, layer):
    found = named(name).layer(layer)
    assert found.batch_dimension == 1
    assert found.shape[0] == 5


def test_gpt2_projections_are_linear_layers():
    assert named("hf_gpt2").layer("transformer.h.0.attn.c_attn").kind == "linear"


def test_layers_of_a_graph_network_answer_for_its_examples():
    assert {x.name for x in named("gin").layers} == {"fc", "relu#2", "head"}
    assert "conv1.lin" in {x.name for x in named("gcn").layers}


# ----------------------------------------------------------------------------------- what may be given


def test_a_data_set_or_tensors_may_be_given_instead_of_a_loader():
    model, data = built(BY_NAME["float64"])
    x, y = (torch.cat(column) for column in zip(*data, strict=True))
    expected = mt.examine(model, data, only="accuracy")["accuracy"].value
    for given, says in (((x, y), "one batch"), (torch.utils.data.TensorDataset(x, y), "a data set is given")):
        subject = Subject(model, given)
        assert says in "; ".join(subject.statements)
        assert subject.examples == ROWS
        assert mt.examine(subject, only="accuracy")["accuracy"].value == expected


def test_numpy_batches_are_understood():
    model, data = built(BY_NAME["float64"])
    exam = mt.examine(model, [(x.numpy(), y.numpy()) for x, y in data], only="accuracy")
    assert exam["accuracy"].value == mt.examine(model, data, only="accuracy")["accuracy"].value


def test_numpy_arrays_are_one_batch_in_the_networks_type():
    x, y = np.random.default_rng(0).normal(size=(24, 4)), np.arange(24) % 3
    exam = mt.examine(networks._mlp(), (x, y), only="accuracy")
    assert exam["accuracy"].status == "measured" and exam.subject["examples"] == 24


def test_a_task_can_be_given():
    model, data = built(BY_NAME["one_hot"])
    assert Subject(model, data, task="multilabel").task.kind == "multilabel"
    model, data = built(BY_NAME["binary_single_logit"])
    assert Subject(model, data, task="regression").task.kind == "regression"
    model, data = built(BY_NAME["resnet"])
    assert Subject(model, data, task="unlabelled").classes is None


def test_within_inference_mode_gradients_are_still_taken():
    model, data = built(BY_NAME["float64"])
    with torch.inference_mode():
        exam = mt.examine(model, data, only="gradient_noise")
    assert exam["gradient_noise"].status in ("measured", "refused")
    with torch.no_grad():
        again = mt.examine(model, data, only="gradient_noise")
    assert exam["gradient_noise"].same_measurement(again["gradient_noise"])


def test_the_users_random_numbers_go_on_as_if_nothing_had_happened():
    model, data = built(BY_NAME["resnet"])
    x, y = (torch.cat(column) for column in zip(*data, strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7, shuffle=True)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    mt.examine(model, loader, only="accuracy")
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]


def test_a_second_network_is_left_as_found_too():
    first, data = built(BY_NAME["train_mode"])
    second, _ = networks.train_mode()
    second.train()
    subject, other = Subject(first, data), Subject(second, data)
    with unchanged(second, data):
        found = read(subject, Collect(signals=(prediction_ids, logits.of(other))))
    second.eval()
    with torch.no_grad():
        torch.testing.assert_close(found[1], second(torch.cat([x for x, _ in data])))


def test_a_compiled_network_is_measured_as_it_was_written():
    compiled = []

    def backend(program, given):
        compiled.append(program)
        return program.forward

    class Half(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.last = inner[:-1], inner[-1]
            self.last.compile(backend=backend)

        @torch.compile(backend=backend)
        def first(self, x):
            return self.inner(x)

        def forward(self, x):
            return self.last(self.first(x))

    model, data = built(BY_NAME["float64"])
    expected = mt.examine(model, data)
    for given in (torch.compile(model, backend=backend), torch.nn.DataParallel(model)):
        exam = mt.examine(given, data)
        assert "what is inside is measured" in "; ".join(exam.subject["inferred"])
        assert {f.instrument: f.status for f in exam} == {f.instrument: f.status for f in expected}
        assert exam["accuracy"].same_measurement(expected["accuracy"])
        assert exam["linear_cka"].same_measurement(expected["linear_cka"])
    assert [layer.name for layer in Subject(Half(model), data).layers] == [
        "inner.0", "inner.1", "inner.2", "inner.3", "last"
    ]  # fmt: skip
    assert not compiled


def test_buffers_bound_anew_by_every_forward_do_not_reach_the_next():
    class Running(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("seen", torch.zeros(4, dtype=torch.float64))

        def forward(self, x):
            self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
            return self.inner(x)

    model, data = built(BY_NAME["float64"])
    running = Running(model)
    held = running.seen
    exam = mt.examine(running, data)
    assert exam.status == "complete"
    assert (
        exam["gradient_noise"].value == mt.examine(model, data, only="gradient_noise")["gradient_noise"].value
    )
    assert running.seen is held and not held.any()


def test_parameters_made_in_inference_mode_are_measured_as_a_copy():
    model, data = built(BY_NAME["float64"])
    with torch.inference_mode():
        frozen = copy.deepcopy(model)
    assert next(frozen.parameters()).is_inference()
    exam = mt.examine(frozen, data)
    assert "a copy is measured" in "; ".join(exam.subject["inferred"])
    assert exam.status == "complete"
    assert exam["input_gradient"].same_measurement(
        mt.examine(model, data, only="input_gradient")["input_gradient"]
    )
    assert all(p.requires_grad for p in frozen.parameters())


def test_a_model_that_needs_its_targets_to_run_is_given_them():
    class Teacher(torch.nn.Module):
        """The decoder reads what it has to say, one step late."""

        def __init__(self):
            super().__init__()
            self.tokens, self.head = torch.nn.Embedding(9, 6), torch.nn.Linear(6, 9)

        def forward(self, source, labels):
            late = torch.nn.functional.pad(labels[:, :-1].clamp_min(0), (1, 0))
            return self.head(self.tokens(source).mean(1, keepdim=True) + self.tokens(late))

    torch.manual_seed(0)
    model, labels = Teacher(), torch.randint(0, 9, (8, 5))
    labels[::2, 4] = -100
    data = [{"source": torch.randint(0, 9, (8, 7)), "labels": labels}]
    subject = Subject(model, data)
    assert "given labels too, for without them it does not run" in subject.statements[0]
    logits_ = model(**data[0]).detach()
    right = (logits_.argmax(-1) == labels)[labels != -100].double().mean()
    exam = mt.examine(subject, only=["accuracy", "gradient_noise", "input_gradient"])
    assert exam["accuracy"].value == pytest.approx(float(right))
    assert exam.status == "complete"


def test_label_maps_may_hold_255_where_there_is_no_label():
    model, data = built(BY_NAME["segmentation"])
    void = [(x, torch.where(y == -100, 255, y)) for x, y in data]
    expected = mt.examine(model, data, only=["accuracy", "hessian_spectrum"])
    exam = mt.examine(model, void, only=["accuracy", "hessian_spectrum"])
    assert "those labelled 255 have no label" in "; ".join(exam.subject["inferred"])
    assert all(f.same_measurement(expected[f.instrument]) for f in exam)


def test_batches_of_two_real_inputs_that_reach_one_another():
    class Pairs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)

        def forward(self, a, b):
            return self.a(a) @ self.b(b).T

    torch.manual_seed(0)
    data = [(torch.randn(6, 4), torch.randn(6, 4), torch.arange(6)) for _ in range(8)]
    assert mt.examine(Pairs(), data).status == "complete"


def test_a_bag_of_tokens_has_no_parts_but_the_numbers_of_its_vector():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.EmbeddingBag(11, 6), torch.nn.Linear(6, 3))
    exam = mt.examine(model, [(torch.randint(0, 11, (24, 5)), torch.arange(24) % 3)], only="explain/*")
    assert exam["integrated_gradients"].status == "measured", exam["integrated_gradients"].reason
    assert exam["integrated_gradients"].arrays["maps"].shape[1:] == (6,)


def failures(model, data, only=()):
    exam = mt.examine(model, data, only=only)
    return {f.instrument: f.reason for f in exam if f.status == "failed"}, exam


@pytest.mark.parametrize("places", [1, 4])  # 4 of 6: windows that overlap
def test_the_largest_of_adaptive_windows_over_normalised_groups(places):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv1d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.GELU(), torch.nn.AdaptiveMaxPool1d(places),
        torch.nn.Flatten(), torch.nn.Linear(4 * places, 3),
    )  # fmt: skip
    found, exam = failures(
        model, [(torch.randn(24, 1, 8), torch.arange(24) % 3)], ["explain/*", "security/*"]
    )
    assert not found
    assert exam["fullgrad"].status == exam["certified_accuracy"].status == "measured"


def test_what_torch_cannot_do_for_a_network_is_a_refusal():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3).bfloat16()

        def forward(self, x):
            return self.b(self.a(x).relu().bfloat16()).float()

    class Again(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.b(
                torch.utils.checkpoint.checkpoint(lambda v: self.a(v).tanh(), x, use_reentrant=False)
            )

    torch.manual_seed(0)
    bag = torch.nn.Sequential(torch.nn.EmbeddingBag(11, 6), torch.nn.Linear(6, 3))
    silent = networks._mlp()
    torch.nn.init.zeros_(silent[-1].weight)
    y = torch.arange(24) % 3
    for model, x, instrument, words in (
        (Mixed(), torch.randn(24, 4), "bound_tightness", "several types of numbers (bfloat16, float32)"),
        (Mixed(), torch.randn(24, 4), "lipschitz", "several types of numbers (bfloat16, float32)"),
        (Again(), torch.randn(24, 4), "gradient_noise", "torch.utils.checkpoint"),
        (
            bag,
            torch.randint(0, 11, (24, 5)),
            "hessian_spectrum",
            "'_embedding_bag_backward' is not implemented",
        ),
        (silent, torch.randn(24, 4), "class_collapse", "all weights of '4' are 0"),
    ):
        finding = mt.examine(model, [(x, y)], only=instrument)[instrument]
        assert finding.status == "refused" and words in finding.reason, (instrument, finding.reason)


def test_a_graph_in_a_dictionary_is_a_graph():
    model, (graph,) = built(BY_NAME["gcn"])
    held = graph.to_dict()
    held["labels"] = held.pop("y")
    only = ["accuracy", "homophily", "oversmoothing", "edge_attribution"]
    expected = mt.examine(model, [graph], only=only)
    exam = mt.examine(model, [held], only=only)
    assert exam.subject["task"] == "node-classification"
    assert all(f.status == "measured" and f.same_measurement(expected[f.instrument]) for f in exam)


@pytest.mark.parametrize("flat", [False, True])
def test_pictures_of_two_classes_have_an_answer_a_position(flat):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1)
    )
    x, y = torch.rand(24, 3, 5, 5), (torch.rand(24, 1, 5, 5) < 0.3).float()
    data = [(a, b[:, 0] if flat else b) for a, b in cut(9, x, y)]
    found, exam = failures(model, data)
    assert not found
    assert "binary classification of every position" in "; ".join(exam.subject["inferred"])
    z = model(x).detach()
    assert exam["accuracy"].value == pytest.approx(float(((z > 0) == y.bool()).double().mean()))
    assert exam["calibration"].quantities["negative log-likelihood"].value == pytest.approx(
        float(F.binary_cross_entropy_with_logits(z, y)), 1e-5
    )
    ids, _ = read(Subject(model, data), Collect(signals=(prediction_ids, logits)))[:2]
    assert len(ids.unique()) == 24 * 25


def test_answers_of_the_first_of_two_classes_are_explained_as_well():
    """They share one output, whose logit for the first class is 0 whatever the input."""
    model, data = built(BY_NAME["binary_single_logit"])
    with torch.no_grad():
        model[-1].bias.sub_(model(torch.cat([x for x, _ in data])).median() + 0.01)
    exam = mt.examine(
        model, data, only="explain/*", options={"input_gradient": {"examples": tuple(range(24))}}
    )
    found = exam["input_gradient"]
    assert set(found.arrays["classes"].tolist()) == {0, 1}
    x = torch.cat([x for x, _ in data]).requires_grad_()
    slope = torch.autograd.grad(model(x).sum(), x)[0].abs()
    torch.testing.assert_close(torch.from_numpy(found.arrays["maps"]).float(), slope, rtol=1e-4, atol=1e-6)
    for name in ("integrated_gradients", "fullgrad", "layerwise_relevance", "smoothgrad"):
        assert (abs(exam[name].arrays["maps"]).sum(1) > 0).all(), name
    share = exam["integrated_gradients"].tables["completeness"].rows
    signs = {row[0]: float(row[1]) for row in share}
    assert all(
        value > 0 for value in signs.values()
    )  # the answer is what speaks for the class that was given


def test_what_nothing_explains_is_refused_before_it_costs():
    model, data = built(BY_NAME["float64"])
    torch.nn.init.zeros_(model[-1].weight)
    exam = mt.examine(model, data, only=["eva", "integrated_gradients", "layerwise_relevance"])
    assert {(f.status, f.rounds) for f in exam} == {("refused", 1)}
    assert all("no lower when all input is at the baseline" in f.reason for f in exam)


def test_soft_labels_are_no_regression_without_a_word():
    torch.manual_seed(0)
    soft = torch.rand(24, 3).softmax(1)
    subject = Subject(networks._mlp(), cut(9, torch.randn(24, 4), soft))
    assert subject.task.kind == "regression" and "soft labels?" in subject.task.statement


def test_bounds_that_would_take_too_long_are_taken_by_intervals_and_say_so():
    model, data = built(BY_NAME["float64"])
    names = ("bound_tightness", "certified_accuracy", "eva")
    options = {name: {"most_work": 1e3} for name in names}
    dear, cheap = (mt.examine(model, data, only=names, options=given) for given in (options, {}))
    for name in names:
        assert dear[name].status == cheap[name].status == "measured"
        assert any("intervals" in words for words in dear[name].caveats), name
        assert not any("intervals" in words for words in cheap[name].caveats), name
    widths = [exam["bound_tightness"].quantities["tightness, at most"].value for exam in (dear, cheap)]
    assert widths[0] == 1 > widths[1]
    radius = [exam["certified_accuracy"].arrays["certified_radius"] for exam in (dear, cheap)]
    assert (radius[0] <= radius[1]).all()
    assert (radius[0] == dear["certified_accuracy"].arrays["interval_radius"]).all()


def test_a_network_moved_to_be_measured_comes_back():
    moves = []

    class Moved(torch.nn.Sequential):
        def to(self, device):  # this machine may have no second device
            moves.append(str(device))
            return self

    _, data = built(BY_NAME["float64"])
    model = Moved(networks._mlp().double())
    exam = mt.examine(model, data, only="accuracy", device="cpu")
    assert exam.status == "complete" and moves == ["cpu", "cpu"]
    with pytest.raises(SubjectError):
        mt.examine(model, [], only="accuracy", device="cpu")
    assert len(moves) == 4
    mt.examine(model, data, only="accuracy")
    Subject(model, data, device="cpu")
    assert len(moves) == 5  # a subject that is kept stays where it was put
