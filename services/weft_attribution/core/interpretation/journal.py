"""
Every answer that was paid for, in the bucket: `features/{transcoder}/answers/{first two digits}/{key}.json`.

The key is a hash over the question as a whole, model, prompt, data and sampling, and over the endpoint's URL: another
server may have another model by the same name. So the same question is never paid for
twice, whoever asks it and whatever has crashed in between.
"""

import hashlib
from dataclasses import dataclass

from weft_attribution.core.interpretation.ports import Answer, Outcome
from weft_common.errors import AlreadyExistsError, DataLossError, NotFoundError
from weft_store.documents import create_json, read_json
from weft_store.port import ObjectStore

__all__ = ["Entry", "Journal"]

_MAX_TEXT = 8 << 20


@dataclass(frozen=True)
class Entry:
    """An answer, and the operation that paid for it."""

    answer: Answer
    operation: str


class Journal:
    """
    The answers for one transcoder. Calls block.

    Args:
        store: The bucket.
        transcoder: Id of the transcoder.
        endpoint: Base URL of who answers, with neither credentials nor query.
    """

    def __init__(self, store: ObjectStore, transcoder: str, endpoint: str) -> None:
        self._store, self._endpoint = store, endpoint.rstrip("/")
        self._folder = f"features/{transcoder}/answers/"

    def get(self, key: str) -> Entry | None:
        """The answer to a question, if there is one. DataLossError where it is damaged."""
        try:
            document, _ = read_json(self._store, self._key(key))
        except NotFoundError:
            return None
        try:
            answer = Answer(
                Outcome(document["outcome"]),
                str(document["text"]),
                int(document["question_tokens"]),
                int(document["answer_tokens"]),
                int(document["attempts"]),
            )
            return Entry(answer, str(document["operation"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(f"object {self._key(key)!r} is no answer ({error!r}); delete it to ask again") from None

    def add(self, key: str, entry: Entry, purpose: str) -> None:
        """Keep an answer; where another process was faster, its answer stays."""
        document = {**entry.answer.to_json(), "operation": entry.operation, "purpose": purpose}
        document["text"] = entry.answer.text[:_MAX_TEXT]
        try:
            create_json(self._store, self._key(key), document)
        except AlreadyExistsError:
            return

    def _key(self, key: str) -> str:
        key = hashlib.sha256(f"{self._endpoint} {key}".encode()).hexdigest()
        return f"{self._folder}{key[:2]}/{key}.json"
