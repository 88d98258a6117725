"""
What one operation works on, written down when it is asked for.

It lies at `features/{transcoder}/interpretations/{operation}/plan.json`. Work may wait and be taken up again for days.
A graph that is deleted, an index that is made or a release that has newer prompts meanwhile would change its features
and questions, and what was paid for would be paid for again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft_attribution.core.interpretation.results import work_folder
from weft_attribution.core.labels import Place
from weft_common.errors import DataLossError, NotFoundError
from weft_store.documents import Document, keep_json, read_json
from weft_store.port import ObjectStore

__all__ = ["Plan", "keep_plan", "read_plan"]


@dataclass(frozen=True)
class Plan:
    """
    What is worked on.

    Args:
        places: The features, in the order in which they are worked on.
        index_id: Index that their examples come from.
        prompts: Name of the prompt for each kind of question.
    """

    places: tuple[Place, ...]
    index_id: str
    prompts: Mapping[str, str]


def read_plan(store: ObjectStore, transcoder: str, operation_id: str) -> Plan | None:
    """The plan of an operation, if one was written down; blocks. DataLossError where it is damaged."""
    key = _key(transcoder, operation_id)
    try:
        document, _ = read_json(store, key)
    except NotFoundError:
        return None
    return _plan(key, document)


def keep_plan(store: ObjectStore, transcoder: str, operation_id: str, plan: Plan) -> Plan:
    """Write a plan down; where there is one, that stays and is returned. Blocks."""
    places = [number for place in plan.places for number in place]
    document = {"places": places, "index_id": plan.index_id, "prompts": dict(plan.prompts)}
    key = _key(transcoder, operation_id)
    return _plan(key, keep_json(store, key, document))


def _plan(key: str, document: Document) -> Plan:
    try:
        # Layers and indexes by turns: a line of the object each, not four.
        numbers = [int(each) for each in document["places"]]
        places = tuple(Place(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
        prompts = {str(kind): str(name) for kind, name in document["prompts"].items()}
        return Plan(places, str(document["index_id"]), prompts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"object {key!r} is no plan ({error!r}); delete it and ask for the work again") from None


def _key(transcoder: str, operation_id: str) -> str:
    return f"{work_folder(transcoder, operation_id)}plan.json"
