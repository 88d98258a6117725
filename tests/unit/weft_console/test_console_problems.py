"""Errors as HTTP answers, and the ids of new graphs."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_common.errors import Code, InvalidArgumentError, ResourceExhaustedError, WeftError
from weft_common.resource_names import check_id
from weft_console.api.graphs import new_graph_id
from weft_console.problems import HTTP_STATUS, problem


def every_error(cls: type[WeftError] = WeftError) -> Iterator[type[WeftError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("cls", list(every_error()))
def test_every_error_has_an_answer(cls: type[WeftError]) -> None:
    """Each error of the tree becomes a problem with its own code, message and an error's status."""
    answer = problem(cls("what was wrong"))
    body = json.loads(bytes(answer.body))
    assert 400 <= answer.status_code < 600
    assert body["code"] == cls.code.name
    assert body["detail"] == "what was wrong"
    assert answer.media_type == "application/problem+json"


def test_faults_of_callers_and_servers_are_told_apart() -> None:
    """A caller's fault is 4xx; what the caller cannot mend is 5xx."""
    servers = {
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.DATA_LOSS,
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
    }
    for code in set(Code) - {Code.OK}:
        assert (HTTP_STATUS.get(code, 500) >= 500) == (code in servers), code


def test_problem_names_field_and_time_to_wait() -> None:
    """What the error knows besides its message is passed on."""
    assert json.loads(bytes(problem(InvalidArgumentError("no", field="prompt")).body))["field"] == "prompt"
    assert problem(ResourceExhaustedError("full", retry_after_s=2.4)).headers["retry-after"] == "2"


@given(st.text())
def test_new_graph_id_is_an_id_for_any_prompt(prompt: str) -> None:
    """Whatever is typed, the id is one that every service takes."""
    graph_id = new_graph_id(prompt)
    assert check_id(graph_id) == graph_id
    assert graph_id == graph_id.lower()


def test_new_graph_id_begins_with_the_prompts_words() -> None:
    """A person recognises the graph by its address."""
    assert new_graph_id("The capital of France is").rsplit("-", 1)[0] == "the-capital-of-france-is"
    assert new_graph_id("東京").startswith("graph-")
