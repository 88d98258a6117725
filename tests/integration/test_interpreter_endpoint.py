"""OpenAI's client against a server on this machine: what comes back, what is repeated, what is never sent."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate

import pytest
from interpreter_server import InterpreterServer, completion, cut, interpreter_server, raw, says, slow, status
from rule_interpreter import RuleBrain

from weft_attribution.adapters.openai_interpreter import OpenAiInterpreter, openai_interpreter
from weft_attribution.core.interpretation.answers import read_label, schema
from weft_attribution.core.interpretation.ports import Embedding, NobodyAnsweredError, Outcome, Question
from weft_common.errors import FailedPreconditionError

KEY = "sk-not-to-be-seen"
QUESTION = Question("m", 'Say {"label": ...}', "1 (9): a <<3>>\n2 (4): b <<7>>", 50)


@pytest.fixture
def server() -> Iterator[InterpreterServer]:
    with interpreter_server(RuleBrain().answer) as served:
        yield served


@pytest.fixture
async def interpreter(server: InterpreterServer) -> AsyncIterator[OpenAiInterpreter]:
    async with openai_interpreter(server.url, KEY, timeout_s=2.0) as made:
        yield made


async def test_question_and_answer(server: InterpreterServer, interpreter: OpenAiInterpreter) -> None:
    """Model, messages, limits and key are sent as the protocol has them; text and tokens come back."""
    question = Question("m", QUESTION.system, QUESTION.user, 50, schema("label"))
    answer = await interpreter.ask(question, key="k", max_attempts=1)
    assert (answer.outcome, read_label(answer.text)) == (Outcome.ANSWERED, "a digit")
    assert (answer.question_tokens, answer.answer_tokens, answer.attempts) == (100, 10, 1)
    ((path, body, headers),) = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 50)
    assert [message["content"] for message in body["messages"]] == [question.system, question.user]
    assert body["response_format"]["json_schema"]["schema"] == json.loads(schema("label"))
    assert (headers["authorization"], headers["idempotency-key"]) == (f"Bearer {KEY}", "k")


async def test_half_a_character_can_be_kept(server: InterpreterServer, interpreter: OpenAiInterpreter) -> None:
    """An answer that was cut within a character is text that can be stored, and vectors without end are no vectors."""
    cut_off = {"choices": [{"message": {"content": "a\ud83d"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    server.faults = [raw(json.dumps(cut_off).encode())]
    assert (await interpreter.ask(QUESTION, key="k", max_attempts=1)).text.encode() == b"a?"
    server.faults = [raw(b'{"data": [{"index": 1e999, "embedding": [1.0]}]}')]
    answer = await interpreter.embed(Embedding("e", ("x",)), key="k", max_attempts=1)
    assert answer.text.startswith("not of OpenAI's protocol")


async def test_nothing_of_the_environment_is_sent(server: InterpreterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, organisations and proxies that other programs find in the environment stay there."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "from-the-environment")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with openai_interpreter(server.url, "", timeout_s=2.0) as interpreter:
        await interpreter.ask(QUESTION, key="k", max_attempts=1)
    assert "from-the-environment" not in json.dumps(server.requests)


@pytest.mark.parametrize(
    "fault", [cut(), status(500), status(503), status(409), raw(b"", {"Content-Encoding": "gzip"})]
)
async def test_what_passes_is_sent_again(
    server: InterpreterServer, interpreter: OpenAiInterpreter, fault: object
) -> None:
    """A cut connection and an error of the server are repeated, and each time counts."""
    server.faults = [fault]  # type: ignore[list-item]
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=2)
    assert read_label(answer.text) == "a digit"
    assert answer.attempts == len(server.requests) == 2


async def test_retry_after_is_waited_for(server: InterpreterServer, interpreter: OpenAiInterpreter) -> None:
    """429 with Retry-After is sent again no sooner than asked."""
    server.faults = [status(429, {"Retry-After": "1.2"})]
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=3)
    assert answer.attempts == 2
    assert server.times[1] - server.times[0] >= 1.2


@pytest.mark.parametrize("fault", [status(429, {"Retry-After": "0.01"}), cut(), slow(3.0), raw(b"x" * (17 << 20))])
async def test_repeating_has_an_end(server: InterpreterServer, fault: object) -> None:
    """After so many attempts nobody has answered; no more are sent."""
    server.always = fault  # type: ignore[assignment]
    async with openai_interpreter(server.url, KEY, timeout_s=0.5) as interpreter:
        with pytest.raises(NobodyAnsweredError):
            await interpreter.ask(QUESTION, key="k", max_attempts=2)
    assert len(server.requests) == 2


@pytest.mark.parametrize("code", [401, 403, 404, 307])
async def test_endpoint_that_answers_nothing_is_named(
    server: InterpreterServer, interpreter: OpenAiInterpreter, code: int
) -> None:
    """A wrong key, path or model ends the work with what to set; a redirect is not followed. The key is not in it."""
    server.always = status(code, {"Location": "http://127.0.0.1:9/v1"}, f"wrong key {KEY}")
    with pytest.raises(FailedPreconditionError, match="WEFT_ATTRIBUTION_INTERPRETER_") as raised:
        await interpreter.ask(QUESTION, key="k", max_attempts=3)
    assert KEY not in raised.value.message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "sent", "told_s"),
    [
        (status(429, {"Retry-After": "600"}), 1, 600.0),
        (status(503, {"x-should-retry": "false"}), 1, None),
        (status(429, {"Retry-After": "soon"}), 2, None),
        (status(429, {"Retry-After": formatdate(4_000_000_000, usegmt=True)}), 1, 1e8),
        (cut(), 2, None),
    ],
)
async def test_nobody_answers_with_what_was_sent_and_told(
    server: InterpreterServer, interpreter: OpenAiInterpreter, fault: object, sent: int, told_s: float | None
) -> None:
    """A wait that is too long for the client, or an endpoint that wants no repetition: one request, and the wait."""
    server.always = fault  # type: ignore[assignment]
    with pytest.raises(NobodyAnsweredError) as raised:
        await interpreter.ask(QUESTION, key="k", max_attempts=2)
    assert raised.value.attempts == len(server.requests) == sent
    if told_s is None:
        assert raised.value.retry_after_s is None
    else:
        assert raised.value.retry_after_s is not None
        assert raised.value.retry_after_s >= told_s


async def test_rejection_is_an_answer(server: InterpreterServer, interpreter: OpenAiInterpreter) -> None:
    """A question that the endpoint takes for wrong is told apart, with its reason and without the key."""
    server.always = status(400, message=f"too long for {KEY}")
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=3)
    assert answer.outcome is Outcome.REJECTED
    assert "too long for ***" in answer.text
    assert answer.attempts == len(server.requests) == 1


@pytest.mark.parametrize("key", ["1", "ab", KEY])
async def test_key_is_left_in_answers(server: InterpreterServer, key: str) -> None:
    """An answer is kept to the letter, whatever it has of the key; a short key is left in a rejection too."""
    async with openai_interpreter(server.url, key, timeout_s=2.0) as interpreter:
        said = json.dumps({"answers": [1, 0], "text": f"cab {key}"})
        server.faults = [says(said), status(400, message="1 is not enough")]
        assert (await interpreter.ask(QUESTION, key="k", max_attempts=1)).text == said
        assert "1 is not enough" in (await interpreter.ask(QUESTION, key="k", max_attempts=1)).text


async def test_thoughts_that_come_to_the_limit_are_an_empty_answer(
    server: InterpreterServer, interpreter: OpenAiInterpreter
) -> None:
    """A model that has said nothing by its limit has answered with nothing, and its tokens are told."""
    server.always = says(None, finish_reason="length")
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=1)
    assert (answer.outcome, answer.text) == (Outcome.ANSWERED, "")
    assert (answer.question_tokens, answer.answer_tokens) == (100, 10)


async def test_limit_and_temperature_are_sent_as_the_endpoint_has_them(server: InterpreterServer) -> None:
    """A model that thinks first gets its own field for the limit, and no temperature."""
    async with openai_interpreter(server.url, KEY, timeout_s=2.0, limit="max_completion_tokens") as interpreter:
        question = Question("m", QUESTION.system, QUESTION.user, 4000, is_greedy=False)
        await interpreter.ask(question, key="k", max_attempts=1)
    ((_, body, _),) = server.requests
    assert body["max_completion_tokens"] == 4000
    assert not {"max_tokens", "temperature"} & set(body)
    assert question.key() != Question("m", QUESTION.system, QUESTION.user, 4000).key()


async def test_rejection_counts_what_was_sent_before_it(
    server: InterpreterServer, interpreter: OpenAiInterpreter
) -> None:
    """A question that was sent again and then taken for wrong cost as many calls as were made."""
    server.faults = [status(500), status(429, {"Retry-After": "0.01"}), status(422)]
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=5)
    assert answer.outcome is Outcome.REJECTED
    assert answer.attempts == len(server.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [
        says(None, refusal="I will not"),
        says("I", finish_reason="content_filter"),
        says(None, refusal="x", content=None),
    ],
)
async def test_refusal_is_an_answer(server: InterpreterServer, interpreter: OpenAiInterpreter, fault: object) -> None:
    """A refusal of the model or of a filter is told apart from an answer."""
    server.always = fault  # type: ignore[assignment]
    assert (await interpreter.ask(QUESTION, key="k", max_attempts=1)).outcome is Outcome.REFUSED


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>502</html>", b"[]", b"null", b'{"choices": []}', b'{"choices": [{"message": {"content": [1]}}]}',
     b'{"label": "x"}', b'"{\\"label\\": \\"x\\"}"', b"\xff\xfe", b"[" * 100_000, b'{"choices": [{"message": "x"}]}'],
)  # fmt: skip
async def test_nonsense_is_told_apart_and_is_no_label(
    server: InterpreterServer, interpreter: OpenAiInterpreter, body: bytes
) -> None:
    """What comes back with status 200 and is not of the protocol is no answer to keep, and none of it is a label."""
    server.always = raw(body)
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=2)
    assert answer.outcome is Outcome.STRANGE
    assert read_label(answer.text) is None
    assert answer.question_tokens == -1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -5}, {"prompt_tokens": "9"}, {"prompt_tokens": 10**30}])
async def test_wrong_bills_are_not_believed(
    server: InterpreterServer, interpreter: OpenAiInterpreter, usage: object
) -> None:
    """Token counts that are none are taken for unknown, which the budget counts as the most it can be."""
    document = json.loads(completion('{"label": "x"}'))
    server.always = raw(json.dumps({**document, "usage": usage}).encode())
    answer = await interpreter.ask(QUESTION, key="k", max_attempts=1)
    assert (answer.question_tokens, answer.answer_tokens) == (-1, 0)
    assert read_label(answer.text) == "x"


async def test_embeddings_come_in_the_order_of_the_texts(
    server: InterpreterServer, interpreter: OpenAiInterpreter
) -> None:
    """Vectors are put in order by their index."""
    answer = await interpreter.embed(Embedding("e", ("3", "(", "river")), key="k", max_attempts=1)
    assert json.loads(answer.text) == [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0]]
    assert server.requests[0][1] == {"model": "e", "input": ["3", "(", "river"], "encoding_format": "float"}
    server.always = raw(b'{"data": [{"index": 0, "embedding": ["x"]}]}')
    answer = await interpreter.embed(Embedding("e", ("3",)), key="k", max_attempts=1)
    assert answer.text.startswith("not of OpenAI's protocol")
    assert answer.outcome is Outcome.STRANGE


async def test_key_is_not_logged(
    server: InterpreterServer, interpreter: OpenAiInterpreter, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by us nor by the client, whatever is logged and whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    server.faults = [status(500), status(401)]
    with pytest.raises(FailedPreconditionError):
        await interpreter.ask(QUESTION, key="k", max_attempts=2)
    assert caplog.records
    assert KEY not in caplog.text
