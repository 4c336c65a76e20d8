"""Token ids as text, from every kind of file and carrier."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import microtome
from microtome.cli.subjects import SubjectOptions, load_subject
from microtome.errors import UsageError
from microtome.subject import Subject
from microtome.vocabulary import read_vocabulary, readable, words_of

WORDS = {"good": 0, "bad": 1, "<b>film</b>": 2, "not": 3}
TEXTS = {i: w for w, i in WORDS.items()}


class Bag(nn.Module):
    """The sum of its words' vectors decides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids).sum(1))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 4, (20, 5), generator=generator), torch.arange(20) % 2


def write(folder: Path, name: str, held: Any) -> Path:
    path = folder / name
    path.write_text(held if isinstance(held, str) else json.dumps(held), encoding="utf-8")
    return path


def test_every_kind_of_file(tmp_path: Path) -> None:
    whole = {"model": {"type": "WordLevel", "vocab": {"good": 0, "bad": 1}}, "added_tokens": [
        {"id": 2, "content": "<b>film</b>"}, {"id": 3, "content": "not"}, {"id": "x"}, 7,
    ]}  # fmt: skip
    unigram = {
        "model": {
            "type": "Unigram",
            "vocab": [["▁good", -1.0], ["bad", -2.0], ["<b>film</b>", 0], ["not", 0]],
        }
    }
    for name, held in {
        "tokenizer.json": whole, "unigram.json": unigram, "vocab.json": WORDS, "list.json": list(WORDS),
        "turned.json": {str(i): w for i, w in TEXTS.items()}, "vocab.txt": "\n".join(WORDS) + "\n",
    }.items():  # fmt: skip
        assert read_vocabulary(write(tmp_path, name, held)) == TEXTS, name
    assert read_vocabulary(str(tmp_path)) == TEXTS  # a folder: tokenizer.json before the others


def test_what_tokenizers_writes(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["the good film, the bad film", "schöne Grüße, naïve café"] * 20, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    found = read_vocabulary(tmp_path)
    ids = made.encode("the good Grüße").ids
    assert "".join(found[i] for i in ids).replace(" ", "") == "thegoodGrüße"
    assert words_of(made)(ids) == [found[i] for i in ids]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("Ġthe", "the"),
        ("▁film", "film"),
        ("Ã©", "é"),
        ("café", "café"),
        ("Ċ", "⏎"),
        ("Ġ", "␣"),
        ("", "␣"),
        ("##ing", "##ing"),
    ],
)
def test_tokens_as_people_read_them(token: str, shown: str) -> None:
    assert readable(token) == shown


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was run",))


def test_what_is_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "pickled.json").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "tokenizer.model").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    write(tmp_path, "other.json", {"model": "x", "words": [1]})
    write(tmp_path, "empty.json", [])
    for name in ("pickled.json", "tokenizer.model", "binary.txt", "deep.json", "other.json", "empty.json"):
        with pytest.raises(UsageError, match="MT516"):
            read_vocabulary(tmp_path / name)
    (tmp_path / "nothing").mkdir()
    for name in (tmp_path / "nothing", tmp_path / "absent.json", "no-such-model/anywhere"):
        with pytest.raises(UsageError, match=r"MT515.*\n?.*nothing is downloaded|MT515"):
            read_vocabulary(name)
    with pytest.raises(UsageError, match="MT517"):
        Subject(Bag(), [batch()], tokenizer=3)


def shown(subject: Subject) -> list[str] | None:
    return subject.words([0, 2, 9]) if subject.words is not None else None


def test_who_carries_the_words(tmp_path: Path) -> None:
    expected = ["good", "<b>film</b>", "9"]
    ids, y = batch()

    class Data(list[Any]):
        vocabulary = tuple(WORDS)

    class Slow:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [TEXTS.get(i, str(i)) for i in ids]

    carrying = Bag()
    carrying.tokenizer = Slow()  # type: ignore[assignment]
    path = write(tmp_path, "vocab.json", WORDS)
    assert shown(Subject(Bag(), [(ids, y)])) is None
    assert shown(Subject(Bag(), [{"ids": ids, "labels": y, "vocabulary": TEXTS}])) == expected
    assert shown(Subject(Bag(), Data([(ids, y)]))) == expected
    assert shown(Subject(carrying, [(ids, y)])) == expected
    for given in (WORDS, TEXTS, list(WORDS), Slow(), str(path), path):
        assert shown(Subject(Bag(), [(ids, y)], tokenizer=given)) == expected
    assert shown(Subject(carrying, [(ids, y)], tokenizer=["a", "b", "c"])) == [
        "a",
        "c",
        "9",
    ]  # what is given counts


def test_the_option_reaches_the_examples_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "vocab.json", WORDS)
    (tmp_path / "words_net.py").write_text(
        "from test_vocabulary import Bag, batch\n\ndef build():\n    return Bag()\n\ndata = [batch()]\n"
    )
    monkeypatch.chdir(tmp_path)
    options = SubjectOptions(data="words_net:data", path=str(tmp_path), tokenizer="vocab.json")
    model, data, keywords = load_subject("words_net:build", options, 0)
    assert keywords["source"]["tokenizer"] == str(tmp_path / "vocab.json")
    exam = microtome.examine(model, data, only=("reliability/examples",), **keywords)
    assert dict(exam["examples"].tables["vocabulary"].rows) == TEXTS


def test_the_lab_shows_the_words_and_what_each_counts(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from microtome.store import open_store
    from microtome.web import application

    torch.manual_seed(0)
    only = ("reliability/examples", "explain/nearest_counterfactual")
    exam = microtome.examine(Bag(), [batch()], only=only, store=str(tmp_path), tokenizer=WORDS)
    assert "the embedding gives" in exam["nearest_counterfactual"].caveats[0]
    with open_store(tmp_path) as store:
        client = TestClient(application(store), base_url="http://127.0.0.1:7345")
        grid = client.get(f"/e/{exam.id}/examples").text
        assert "&lt;b&gt;film&lt;/b&gt;" in grid and "<b>film" not in grid
        page = client.get(f"/e/{exam.id}/examples/worst").text
        shaded = [w for w in WORDS if f">{w.replace('<', '&lt;').replace('>', '&gt;')}<span" in page]
        assert len(shaded) >= 2 and ("most for:" in page or "most against:" in page)
        assert "A change of length" in page and "changed, answered" not in page
