"""Subjects: every id fits into one token and comes back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import CallId
from hexagent.runtime import subjects

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", fullmatch=True)
TOKEN = re.compile(r"[-/_=a-zA-Z0-9]+\Z")  # what both a subject and a key of a bucket allow


@given(IDS)
def test_an_id_is_one_token_and_comes_back(identifier: str) -> None:
    token = subjects.encoded(identifier)
    assert TOKEN.match(token)
    assert subjects.decoded(token) == identifier


@given(IDS, IDS)
def test_subjects_name_what_they_were_made_for(workflow_id: str, node_id: str) -> None:
    call = CallId(workflow_id, node_id)
    assert subjects.token(call).startswith(subjects.workflow_tokens(workflow_id)[:-1])
    for subject in (subjects.workflow(workflow_id), subjects.outcome(workflow_id), subjects.token(call)):
        assert subjects.workflow_of(subject) == workflow_id


def test_different_ids_have_different_tokens() -> None:
    ids = ["a.b", "a:b", "a-b", "a_b", "a2Eb", "ab", "a..b", "a.:b"]
    assert len({subjects.encoded(identifier) for identifier in ids}) == len(ids)


@pytest.mark.parametrize("identifier", ["", "a b", "a*", "a>", "a=2E", ".a", "a/b", "x" * 129])
def test_what_is_no_id_is_not_encoded(identifier: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        subjects.encoded(identifier)
    assert refused.value.reason == "BAD_ID"


@pytest.mark.parametrize("token", ["", "a.b", "a:b", "a=2e", "a=41", "a="])
def test_what_is_no_token_is_not_decoded(token: str) -> None:
    with pytest.raises(InvalidArgument):
        subjects.decoded(token)


@pytest.mark.parametrize("subject", ["hexagent.telemetry.i", "other.workflow.w", "hexagent.workflow", ""])
def test_subjects_of_other_things_name_no_workflow(subject: str) -> None:
    with pytest.raises(InvalidArgument):
        subjects.workflow_of(subject)
