"""What commands print for people and for programs."""

import json

import pytest

from weft.attribution.v1 import messages_pb2
from weft_client.cli.output import print_fields, print_list, print_one

PROMPT = "[/bold] [red]x[/red] \\[y] :smile:"


def graph() -> messages_pb2.Graph:
    return messages_pb2.Graph(name="graphs/g", spec=messages_pb2.GraphSpec(prompt=PROMPT))


def test_text_that_looks_like_markup_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt with brackets is printed, not interpreted, in lists and in fields."""
    print_list(
        "graphs", [graph()], {"id": lambda each: each.name, "prompt": lambda each: each.spec.prompt}, as_json=False
    )
    print_fields([("prompt", PROMPT)])
    assert capsys.readouterr().out.count(PROMPT) == 2


def test_piped_tables_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a row of 150 characters stays one line."""
    name = "graphs/" + "g" * 60
    columns = {"id": lambda each: each.name, "again": lambda each: each.name, "prompt": lambda each: "p" * 20}
    print_list("graphs", [messages_pb2.Graph(name=name)], columns, as_json=False)
    assert capsys.readouterr().out.splitlines()[1].split() == [name, name, "p" * 20]


def test_json_has_proto_names_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Fields that are not set are there, so that a program need not guess."""
    print_one(graph(), [], as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["spec"]["prompt"] == PROMPT
    assert document["spec"]["max_logits"] == 0
    assert document["error_message"] == ""


def test_empty_list_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout stays empty for people, and is an empty list for programs."""
    print_list("graphs", [], {}, as_json=False)
    assert capsys.readouterr() == ("", "no graphs yet\n")
    print_list("graphs", [], {}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"graphs": []}
