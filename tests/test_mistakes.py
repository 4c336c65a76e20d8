"""The likeliest mistakes: each gets one sentence that says what, where, and what to do."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import microtome as mt
from microtome.errors import MicrotomeError
from microtome.subject import Subject

ROWS = 24


def network(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(ROWS, 4, generator=generator), torch.arange(ROWS) % 3


def cut(x, y, size=8):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def complaint(code: str, model, data, **options) -> str:
    """The one sentence, checked for its form."""
    with pytest.raises(MicrotomeError) as caught:
        mt.examine(model, data, **{"only": "accuracy", **options})
    text = str(caught.value)
    assert caught.value.code == code, text
    assert re.fullmatch(r"MT\d{3} [^\n]+", text)
    assert len(text) < 300
    return text


# ------------------------------------------------------------------------------------------------ labels


def test_labels_out_of_range():
    x, y = rows()
    text = complaint("MT205", network(), cut(x, y * 2))
    assert "labels run 0..4 but the network has 3 classes" in text
    assert "batch 0" in text and "check the labels" in text


def test_labels_out_of_range_later_name_the_batch():
    x, y = rows()
    y = y.clone()
    y[17] = 7
    assert "labels run 0..7 but the network has 3 classes (batch 2)" in complaint(
        "MT205", network(), cut(x, y)
    )


def test_negative_labels():
    x, y = rows()
    y = torch.where(y == 2, -1, y)
    assert "-100" in complaint("MT205", network(), cut(x, y))


def test_labels_that_start_at_one_say_the_offset():
    x, y = rows()
    text = complaint("MT205", network(), cut(x, y + 1))
    assert "labels run 1..3" in text and "label_offset=1" in text
    assert (
        mt.examine(network(), cut(x, y + 1), only="accuracy", label_offset=1)["accuracy"].status == "measured"
    )


def test_labels_shifted_by_one_are_noticed_by_the_accuracy():
    x, _ = rows()
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(20)
        y = model(x - 0.5).argmax(1)
    assert len(y.unique()) > 1
    wide = nn.Sequential(model, nn.ZeroPad1d((0, 1)))
    text = complaint("MT205", wide, [(x - 0.5, y + 1)])
    assert "after shifting labels by 1" in text and "label_offset=1" in text


# ------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("row", "batch"), [(3, 0), (13, 1)])
def test_inputs_that_are_no_numbers_name_the_batch_and_the_example(value, row, batch):
    x, y = rows()
    x[row, 2] = value
    text = complaint("MT206", network(), cut(x, y))
    assert f"batch {batch}, first at example {row}, 1 of its 8 rows" in text
    assert "clean or drop" in text


def test_targets_that_are_no_numbers():
    x, _ = rows()
    y = torch.randn(ROWS, 1, generator=torch.Generator().manual_seed(0))
    y[9] = float("nan")
    assert "targets hold NaN" in complaint("MT206", network(1), cut(x, y), only="magnitude_pruning")


def test_outputs_that_are_no_numbers_name_the_layer():
    x, y = rows()
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    assert "first in layer '2'" in complaint("MT207", model, cut(x, y))


def test_outputs_that_become_no_numbers_later_name_the_rows():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x) + x[:, :1].sqrt()

    x, y = rows()
    x[20, 0] = -1.0
    x[0, 0] = 2.0
    text = complaint("MT207", Root(), cut(x, y))
    assert re.search(r"examples \d+\.\.\d+", text)


def test_a_wrong_shape_names_the_layer():
    x, y = rows()
    text = complaint("MT201", network(), cut(torch.cat([x, x], 1), y))
    assert "the forward fails in '0'" in text and "[8, 8] float32" in text


def test_a_wrong_shape_later_names_the_layer_too():
    x, y = rows()
    text = complaint("MT201", network(), [*cut(x, y), (torch.cat([x, x], 1), y)])
    assert "the forward fails in '0'" in text


def test_a_third_thing_in_a_batch_that_forward_does_not_take():
    x, y = rows()
    text = complaint("MT201", network(), [(x, y, torch.ones(ROWS))])
    assert "batches hold 3 things, and forward takes one input: yield (x, y)" in text


def test_sparse_inputs():
    x, y = rows()
    assert "to_dense" in complaint("MT201", network(), [(x.to_sparse(), y)])


def test_a_wrong_dtype_says_so():
    x, y = rows()
    assert "the same dtype" in complaint("MT201", network().double(), cut(x, y))


def test_a_convolution_of_another_dtype_says_so_too():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3))
    x, y = rows()
    assert "the same dtype" in complaint("MT201", model, [(x[:, None].double(), y)])


def test_a_forward_that_raises_names_the_users_own_line():
    class Raises(nn.Module):
        def forward(self, x):
            raise ValueError("no such mode\nand more")

    x, y = rows()
    text = complaint("MT201", Raises(), cut(x, y))
    assert "ValueError: no such mode" in text and re.search(r"test_mistakes\.py:\d+\)", text)


def test_wrong_bounds_say_what_the_inputs_span():
    x, y = rows()
    text = complaint("MT203", network(), cut(4 * x - 2, y), bounds=(0, 1))
    assert "bounds say 0..1" in text and "bounds=(low, high)" in text


# -------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("data", [[], iter(()), DataLoader(TensorDataset(torch.zeros(0, 4), torch.zeros(0)))])
def test_data_that_yields_nothing(data):
    assert "the data yields no batch" in complaint("MT209", network(), data)


class _Torn(torch.utils.data.Dataset):
    """One of its files is gone."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        if i == 21:
            raise KeyError("21.png")
        x, y = rows()
        return x[i], y[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_raise_are_blamed_where_they_raise(workers):
    text = complaint("MT522", network(), DataLoader(_Torn(), batch_size=8, num_workers=workers))
    assert "the data raises KeyError: '21.png' (batch 2; " in text
    assert re.search(r"test_mistakes\.py:\d+\)", text)


def test_data_that_raise_later_leave_what_was_measured():
    x, y = rows()

    class Once:
        reads = 0

        def __iter__(self):
            Once.reads += 1
            if Once.reads > 3:
                raise OSError("the disk went away")
            return iter(cut(x, y))

    exam = mt.examine(network(), Once(), only=["accuracy", "hessian_spectrum"], memory=1 << 12)
    assert exam["accuracy"].status == "measured"
    assert "MT522 the data raises OSError: the disk went away" in exam["hessian_spectrum"].reason


def test_an_empty_first_batch():
    x, y = rows()
    assert "no examples" in complaint("MT209", network(), [(x[:0], y[:0]), (x, y)])


def test_an_iterable_that_can_be_read_only_once_is_noticed():
    x, y = rows()

    class Once:
        def __init__(self):
            self.left = iter(cut(x, y))

        def __iter__(self):
            return self.left

    complaint("MT210", network(), Once())


def test_data_in_another_order_on_every_pass_is_refused():
    x, y = rows()
    generator = torch.Generator().manual_seed(0)

    class Shuffled:
        def __iter__(self):
            order = torch.randperm(ROWS, generator=generator)
            return iter(cut(x[order], y[order]))

    # The first round passes, so the second is where it shows; what was measured before is kept.
    exam = mt.examine(network(), Shuffled(), only=["accuracy", "hessian_spectrum"], memory=1 << 12)
    assert exam["accuracy"].status == "measured"
    assert exam["hessian_spectrum"].status == "failed"
    assert "MT210 batch 0 holds other rows than on the first pass" in exam["hessian_spectrum"].reason


def test_single_examples_instead_of_batches():
    x, y = rows()
    text = complaint("MT201", network(), list(zip(x, y, strict=True)))
    assert "single examples" in text and "DataLoader" in text


def test_fewer_targets_than_inputs():
    x, y = rows()
    text = complaint("MT201", network(), [(x, y[:20])])
    assert "20 targets" in text and "[24, 4]" in text


def test_a_batch_of_another_form_is_named():
    x, y = rows()
    text = complaint("MT201", network(), [*cut(x, y), (x, y, y)])
    assert "MT201" in text


def test_keys_that_fit_no_argument_are_listed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x)

    a, b = rows()
    data = [{"image": a, "label": b}]
    text = complaint("MT201", Net(), data)
    assert "the loader yields {image, label}, forward takes (x)" in text and "--inputs" in text
    text = complaint("MT201", Net(), [{"x": a, "label": b}], target="lable")
    assert "did you mean 'label'" in text


def test_targets_that_fit_no_task():
    x, _ = rows()
    text = complaint("MT202", network(), cut(x, torch.randn(ROWS, 5)))
    assert "outputs [8, 3] and targets [8, 5] (float32)" in text


def test_outputs_without_an_answer():
    class Silent(nn.Module):
        def forward(self, x):
            return {"loss": x.sum()}

    x, y = rows()
    assert "holds no floating-point tensor" in complaint("MT208", Silent(), cut(x, y))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda z: z.argmax(1), "returns int64 numbers"),
        (lambda z: z.to(torch.cfloat), "returns complex64 numbers"),
        (lambda z: z.square().mean(), "returns a single number"),
    ],
)
def test_answers_that_are_no_rows_of_real_numbers(answer, words):
    class Odd(nn.Module):
        def forward(self, x):
            return answer(x)

    x, y = rows()
    assert words in complaint("MT208", Odd(), cut(x, y))


@pytest.mark.parametrize(
    ("targets", "words"),
    [(["a"] * ROWS, "a list of str"), ({"boxes": torch.zeros(ROWS)}, "with the keys boxes")],
)
def test_targets_that_are_no_numbers_at_all(targets, words):
    assert words in complaint("MT201", network(), [(rows()[0], targets)])


def test_targets_in_a_dictionary_are_found_or_named():
    x, y = rows()
    data = [(a, {"weight": torch.ones(len(b)), "kind": b, "labels": b * 0}) for a, b in cut(x, y)]
    expected = mt.examine(network(), cut(x, y), only="accuracy")["accuracy"]
    assert mt.examine(network(), data, only="accuracy", target="kind")["accuracy"].same_measurement(expected)
    assert "targets 'labels'" in said(network(), data)


def test_parameters_without_numbers():
    x, y = rows()
    lazy = nn.Sequential(nn.LazyLinear(3))
    assert "'0.weight' holds no numbers yet: it is lazy" in complaint("MT524", lazy, cut(x, y))
    assert "load the weights" in complaint("MT524", network().to("meta"), cut(x, y))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_torchscript_program():
    x, y = rows()
    assert "TorchScript program" in complaint("MT525", torch.jit.trace(network(), x), cut(x, y))


def test_a_graph_of_several_kinds():
    geometric = pytest.importorskip("torch_geometric", reason="an optional dependency brings such graphs")
    data = geometric.data.HeteroData()
    data["author"].x, data["paper"].x = torch.zeros(2, 4), torch.zeros(3, 4)
    assert "several kinds of nodes (author, paper)" in complaint("MT201", network(), [data])


def test_no_model_and_no_data():
    x, y = rows()
    assert "needs an nn.Module, got a str" in complaint("MT123", "resnet18", cut(x, y))
    assert "got the class Linear; give an object of it: Linear(...)" in complaint(
        "MT123", nn.Linear, cut(x, y)
    )
    assert "load_state_dict" in complaint("MT123", network().state_dict(), cut(x, y))
    assert "whose forward calls it" in complaint("MT123", lambda x: x, cut(x, y))
    assert "load_data reads" in complaint("MT123", network(), "rows.npz")
    assert "iterable of batches" in complaint("MT123", network(), 5)
    assert "call it" in complaint("MT123", network(), lambda: cut(x, y))
    assert "needs data" in complaint("MT129", network(), None)


# ------------------------------------------------------------------------------ what is said, not refused


def said(model, data, **options) -> str:
    return "; ".join(Subject(model, data, **options).statements)


def test_probabilities_instead_of_logits_are_read_as_such():
    x, y = rows()
    model = nn.Sequential(network(), nn.Softmax(1))
    assert "MT204" in said(model, cut(x, y))
    assert "MT204" not in said(model, cut(x, y), outputs="logits")
    plain = mt.examine(network(), cut(x, y), only="calibration")["calibration"]
    again = mt.examine(model, cut(x, y), only="calibration")["calibration"]
    assert again.value == pytest.approx(plain.value, abs=1e-6)


def test_dropout_that_stays_on_in_eval_mode_is_named():
    class Forgotten(nn.Dropout):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5)

    x, y = rows()
    text = said(nn.Sequential(nn.Linear(4, 8), Forgotten(), nn.Linear(8, 3)), cut(x, y))
    assert "draws random numbers" not in text or "outputs that differ by" in text
    assert "the same batch twice gives outputs that differ" in text


def test_a_shuffling_loader_is_read_in_order():
    x, y = rows()
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    assert "shuffles" in said(network(), loader)
    ordered = mt.examine(network(), cut(x, y), only="accuracy")["accuracy"]
    assert mt.examine(network(), loader, only="accuracy")["accuracy"].same_measurement(ordered)


def test_a_subset_sampler_is_counted_and_read_in_order():
    from torch.utils.data import SubsetRandomSampler

    x, y = rows()
    loader = DataLoader(
        TensorDataset(x, y), batch_size=5, sampler=SubsetRandomSampler([11, 3, 7, 20, 1, 16, 2])
    )
    subject = Subject(network(), loader)
    assert subject.examples == 7
    assert mt.examine(subject, only="accuracy")["accuracy"].status == "measured"


def test_random_augmentation_comes_out_the_same_on_every_pass():
    x, y = rows()

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, i):
            return x[i] + 0.1 * torch.randn(4), y[i]

    loader = DataLoader(Noisy(), batch_size=8)
    exam = mt.examine(network(), loader, only=["accuracy", "hessian_spectrum"], memory=1 << 12)
    assert exam.status == "complete"
    again = mt.examine(network(), loader, only=["accuracy", "hessian_spectrum"], memory=1 << 12)
    assert all(f.same_measurement(again[f.instrument]) for f in exam)


# ---------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("code", "words", "options"),
    [
        ("MT126", "did you mean", {"only": "acuracy"}),
        ("MT125", "has no option 'binns'", {"options": {"calibration": {"binns": 3}}, "only": "calibration"}),
        ("MT121", "unknown task 'classify'", {"task": "classify", "only": "accuracy"}),
        ("MT128", "no amount of memory", {"memory": "lots", "only": "accuracy"}),
        ("MT123", "outputs is 'logits' or 'probs'", {"outputs": "softmax", "only": "accuracy"}),
        ("MT523", "cannot be moved to the device 'gpu'", {"device": "gpu", "only": "accuracy"}),
        ("MT202", "fit no task 'language-modelling'", {"task": "language-modelling", "only": "accuracy"}),
    ],
)
def test_requests_that_cannot_be_met(code, words, options):
    x, y = rows()
    regression = code == "MT202"
    with pytest.raises(MicrotomeError, match=words) as caught:
        mt.examine(network(1 if regression else 3), cut(x, x[:, :1] if regression else y), **options)
    assert caught.value.code == code
