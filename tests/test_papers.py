import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import MicrotomeError, UsageError
from microtome.papers import ROOMS, paper, papers, states
from microtome.papers.bibliography import parse

SLUGS = st.sampled_from([record.slug for record in papers()])
LEAVES = st.dictionaries(
    st.sampled_from(["reliability/a", "explain/b", "graphs/c"]), st.lists(SLUGS, max_size=3)
)
VERDICTS = st.dictionaries(SLUGS, st.sampled_from(["holds", "fails", "undecided"]), max_size=4)


def state_of(slug, leaves, studies, calibrated=None):
    return next(s for s in states(leaves, studies, calibrated) if s.paper.slug == slug)


def test_every_paper_is_there_once():
    records = papers()
    assert len(records) == 559
    assert len({record.slug for record in records}) == len({record.id for record in records}) == 559
    assert [record.id for record in records] == sorted(record.id for record in records)
    assert {record.room for record in records} == set(ROOMS)


def test_a_paper_is_found_by_its_slug():
    assert paper("deep-grokking").title == "Deep Grokking: Would Deep Neural Networks Generalize Better?"


def test_a_mistyped_slug_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'deep-grokking'"):
        paper("deep-groking")


def test_a_hopeless_slug_still_says_what_to_do():
    with pytest.raises(UsageError, match="microtome papers"):
        paper("%%%")


LINE = b'{"id":"S001","slug":"a","name":"A","title":"On A","kind":"method","room":"explain","priority":1}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINE + b"\n" + LINE.replace(b"S001", b"S002"), "'a' names two papers, lines 1 and 2"),
        (LINE + b"\n" + LINE.replace(b'"a"', b'"b"'), "'S001' names two papers, lines 1 and 2"),
        (LINE + b"\n{", "here, line 2"),
        (LINE.replace(b"explain", b"cellar"), "room"),
        (LINE.replace(b'"a"', b'"A b"'), "slug"),
        (LINE.replace(b'"priority":1', b'"priority":1,"state":"works"'), "state"),
    ],
)
def test_a_wrong_record_is_refused_with_its_place(lines, message):
    with pytest.raises(MicrotomeError, match=message):
        parse(lines, where="here")


def test_with_nothing_registered_everything_is_planned():
    assert {standing.state for standing in states({}, {})} == {"planned"}
    assert [standing.paper for standing in states({}, {})] == list(papers())


@pytest.mark.parametrize(
    ("leaves", "studies", "calibrated", "state"),
    [
        ({"dynamics/rank": ["deep-grokking"]}, {}, None, "instrument"),
        ({"dynamics/rank": ["deep-grokking"]}, {}, ["dynamics/rank"], "instrument"),
        ({"dynamics/rank": ["deep-grokking"]}, {"deep-grokking": "fails"}, None, "works"),
        ({"dynamics/rank": ["deep-grokking"]}, {"deep-grokking": "holds"}, ["dynamics/rank"], "works"),
        ({"dynamics/rank": ["deep-grokking"]}, {"deep-grokking": "holds"}, [], "instrument"),
        ({}, {"deep-grokking": "holds"}, None, "study"),
        ({"dynamics/rank": ["deep-grokking"]}, {"pies": "holds"}, None, "instrument"),
    ],
)
def test_a_state_follows_from_what_is_there(leaves, studies, calibrated, state):
    assert state_of("deep-grokking", leaves, studies, calibrated).state == state


def test_one_uncalibrated_leaf_holds_a_paper_back():
    leaves = {"a/right": ["deep-grokking"], "a/wrong": ["deep-grokking", "deep-grokking"]}
    standing = state_of("deep-grokking", leaves, {"deep-grokking": "holds"}, ["a/right"])
    assert standing.state == "instrument"
    assert standing.leaves == ("a/right", "a/wrong")
    assert standing.uncalibrated == ("a/wrong",)


@pytest.mark.parametrize("given_", [({"a/leaf": ["pie"]}, {}), ({}, {"pie": "holds"})])
def test_an_unknown_paper_is_an_error_that_says_who_names_it(given_):
    with pytest.raises(UsageError, match=r"'pie' \((leaf a/leaf|recorded studies)\); did you mean 'pies'"):
        states(*given_)


@given(leaves=LEAVES, studies=VERDICTS)
def test_works_needs_leaves_and_a_verdict(leaves, studies):
    named = {slug for slugs in leaves.values() for slug in slugs}
    for standing in states(leaves, studies):
        slug = standing.paper.slug
        assert (standing.state == "works") == (slug in named and slug in studies)
        assert (standing.state == "planned") == (slug not in named and slug not in studies)


def test_the_bibliography_needs_no_torch():
    code = "import sys, microtome.papers as p; p.papers(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
