"""
Any endpoint that speaks OpenAI's protocol, through OpenAI's own client.

The client repeats what may pass: connections that were cut or never came, 408, 409, 429 and 5xx, with growing waits or
for as long as Retry-After says, two minutes at most; a longer wait is told to who asked. What comes back is bounded in
bytes, and read by hand.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2
import openai
from openai import AsyncOpenAI, Omit

from weft_attribution.core.interpretation.ports import (
    Answer,
    Embedding,
    NobodyAnsweredError,
    NotServedError,
    Outcome,
    Question,
)

__all__ = ["AnswerLimit", "OpenAiInterpreter", "openai_interpreter"]

AnswerLimit = Literal["max_tokens", "max_completion_tokens"]
_MAX_BYTES = 16 << 20
_MAX_TOLD = 2_000
# A shorter key stands in texts that have nothing to do with it.
_SHORTEST_SECRET = 8
# What the client waits for at most before it sends a question once more.
_LONGEST_WAIT_S = 120.0
# The client says in each request how many came before it.
_RETRIES = "x-stainless-retry-count"
_PASSING = frozenset({408, 409, 429})


class OpenAiInterpreter:
    """
    An `Interpreter` behind `{url}/chat/completions` and `{url}/embeddings`.

    Args:
        client: OpenAI's client.
        timeout_s: Longest that one request may take.
        key: Its key, which is taken out of what the endpoint says of errors.
        limit: What the protocol's field for the longest answer is called.
    """

    def __init__(self, client: AsyncOpenAI, *, timeout_s: float, key: str, limit: AnswerLimit = "max_tokens") -> None:
        self._client, self._timeout_s, self._key, self._limit = client, timeout_s, key, limit

    async def ask(self, question: Question, *, key: str, max_attempts: int) -> Answer:
        """Put a question, at temperature 0 unless it leaves that to the endpoint."""
        asked: dict[str, Any] = {
            "model": question.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            self._limit: question.max_answer_tokens,
        }
        if question.is_greedy:
            asked["temperature"] = 0.0
        if question.schema:
            form = {"name": "answer", "strict": True, "schema": json.loads(question.schema)}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        completions = self._client.with_options(max_retries=max_attempts - 1).chat.completions.with_raw_response
        return await self._sent(lambda: completions.create(**asked, extra_headers=_same(key)), max_attempts, _chat)

    async def embed(self, embedding: Embedding, *, key: str, max_attempts: int) -> Answer:
        """Ask for vectors."""
        asked: dict[str, Any] = {"model": embedding.model, "input": list(embedding.texts), "encoding_format": "float"}
        embeddings = self._client.with_options(max_retries=max_attempts - 1).embeddings.with_raw_response
        return await self._sent(lambda: embeddings.create(**asked, extra_headers=_same(key)), max_attempts, _vectors)

    async def _sent(
        self,
        send: Callable[[], Awaitable[Any]],
        max_attempts: int,
        read: Callable[[Any], tuple[Outcome, str, int, int] | None],
    ) -> Answer:
        try:
            # The client's own limit is on each read: an endpoint that sends a byte now and then would never end.
            async with asyncio.timeout(max_attempts * (self._timeout_s + _LONGEST_WAIT_S)):
                response = await send()
        except openai.APIStatusError as error:
            return self._status(error)
        except (openai.APIConnectionError, TimeoutError) as error:
            raise NobodyAnsweredError(
                f"the interpreter's endpoint does not answer ({type(error).__name__})",
                attempts=_attempts(error.request) if isinstance(error, openai.APIConnectionError) else None,
            ) from None
        attempts = 1 + int(response.retries_taken)
        body = bytes(response.content)
        try:
            found = read(json.loads(body))
        except (ValueError, RecursionError):
            found = None
        if found is None:
            told = body[:_MAX_TOLD].decode(errors="replace")
            return Answer(Outcome.STRANGE, self._without_key(f"not of OpenAI's protocol: {told}"), attempts=attempts)
        outcome, text, question_tokens, answer_tokens = found
        return Answer(outcome, _storable(text), question_tokens, answer_tokens, attempts)

    def _status(self, error: openai.APIStatusError) -> Answer:
        status, attempts = error.status_code, _attempts(error.request)
        if status in _PASSING or status >= 500:
            raise NobodyAnsweredError(
                f"the interpreter's endpoint answers with status {status}",
                attempts=attempts,
                retry_after_s=_told_wait_s(error.response.headers),
            ) from None
        if status in (401, 403):
            raise NotServedError(
                f"the interpreter's endpoint refuses the key (status {status}); "
                "set WEFT_ATTRIBUTION_INTERPRETER_KEY to one that it takes",
                attempts=attempts,
            ) from None
        if status == 404 or status < 400:
            raise NotServedError(
                f"the interpreter's endpoint has no such model or path (status {status}); look at "
                "WEFT_ATTRIBUTION_INTERPRETER_URL, which usually ends in /v1, and at the model's name",
                attempts=attempts,
            ) from None
        told = self._without_key(f"status {status}: {error.message[:_MAX_TOLD]}")
        return Answer(Outcome.REJECTED, told, 0, 0, attempts)

    def _without_key(self, text: str) -> str:
        """What went wrong, which may repeat the key; an answer never saw it, and stays as it is."""
        text = _storable(text)
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_SECRET else text


@asynccontextmanager
async def openai_interpreter(
    url: str, key: str, *, timeout_s: float, limit: AnswerLimit = "max_tokens"
) -> AsyncIterator[OpenAiInterpreter]:
    """
    Connect to an endpoint for as long as the context lasts; nothing is sent before the first question.

    Args:
        url: Base URL, such as `https://host/v1`.
        key: Bearer token; empty where the endpoint asks for none.
        timeout_s: Longest that one request may take.
        limit: What its field for the longest answer is called.
    """
    # Nobody is asked but the endpoint itself: no redirects, and no proxies out of the environment.
    transport = _BoundedTransport()
    # The client's types leave out what takes a header away.
    headers: dict[str, Any] = {
        "OpenAI-Organization": Omit(),
        "OpenAI-Project": Omit(),
        "Accept-Encoding": "identity",
    }
    async with httpx2.AsyncClient(transport=transport, timeout=timeout_s, trust_env=False) as http:
        client = AsyncOpenAI(
            base_url=url,
            # The client takes an empty one for none, and looks for another in the environment.
            api_key=key or "none",
            timeout=timeout_s,
            http_client=http,
            default_headers=headers,
        )
        yield OpenAiInterpreter(client, timeout_s=timeout_s, key=key, limit=limit)


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    """Reads no more of an answer than a bound."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.RemoteProtocolError("the answer is compressed, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for piece in self._stream:
            total += len(piece)
            if total > _MAX_BYTES:
                raise httpx2.RemoteProtocolError(f"the answer has more than {_MAX_BYTES} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _attempts(request: httpx2.Request) -> int:
    """How often a question was sent, by the last request."""
    return 1 + int(request.headers.get(_RETRIES, "0"))


def _told_wait_s(headers: Mapping[str, str]) -> float | None:
    """What Retry-After says, in seconds or as a date; None where it says nothing that can be waited for."""
    told = headers.get("retry-after", "")
    try:
        wait_s = float(told)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return wait_s if math.isfinite(wait_s) and wait_s > 0 else None


def _storable(text: str) -> str:
    """Without halves of characters that need two, which stand where an answer was cut."""
    return text.encode(errors="replace").decode()


def _same(key: str) -> dict[str, str]:
    """An endpoint that knows this header charges for a repeated question once."""
    return {"Idempotency-Key": key}


def _chat(document: Any) -> tuple[Outcome, str, int, int] | None:
    try:
        choice = document["choices"][0]
        message = choice["message"]
        refusal, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    spent = _spent(document)
    if refusal:
        return Outcome.REFUSED, str(refusal), *spent
    if choice.get("finish_reason") == "content_filter":
        return Outcome.REFUSED, str(content or "the endpoint's filter"), *spent
    if content is None and isinstance(choice.get("finish_reason"), str):
        # A model that thinks first may come to its limit before it says anything: paid for, and no answer.
        content = ""
    return (Outcome.ANSWERED, content, *spent) if isinstance(content, str) else None


def _vectors(document: Any) -> tuple[Outcome, str, int, int] | None:
    try:
        ordered = sorted(document["data"], key=lambda each: int(each["index"]))
        # Six digits of a cosine are enough, in half the bytes.
        vectors = [[float(f"{float(value):.6g}") for value in each["embedding"]] for each in ordered]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return Outcome.ANSWERED, json.dumps(vectors), *_spent(document)


def _spent(document: Any) -> tuple[int, int]:
    """Tokens of question and answer; -1 and 0 where the endpoint does not say."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return -1, 0
    question: Any = usage.get("prompt_tokens")
    answer: Any = usage.get("completion_tokens", 0)
    if not all(type(each) is int and 0 <= each < 1 << 40 for each in (question, answer)):
        return -1, 0
    return int(question), int(answer)
