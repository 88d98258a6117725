"""
What a listing tells of a finished graph, and what was measured on it since, apart from the graph itself.

A graph's document is megabytes and never changes; its summary is a few kilobytes. It is written right after the
document, and made again from it where a process died in between, so that a graph is complete by its document alone.
"""

from typing import Any

from weft_attribution.core.records import GraphRequest, graph_key, summary_key
from weft_common.errors import AlreadyExistsError, NotFoundError
from weft_store.documents import create_json, read_json, update_json
from weft_store.port import ObjectStore

__all__ = ["GraphSummaries"]

Json = dict[str, Any]


class GraphSummaries:
    """
    The summaries in a bucket.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, request: GraphRequest) -> Json | None:
        """
        Return `tokens`, `statistics` and `interventions` of a finished graph, None where it is not finished.

        `faithfulness` is there too where it was measured.
        """
        there = self._stored(request)
        if there is not None:
            return there
        try:
            document, _ = read_json(self._store, graph_key(request.graph_id))
        except NotFoundError:
            return None
        return self.write(request, document)

    def document(self, request: GraphRequest) -> Json | None:
        """Return the whole document of a finished graph with what was measured on it, None where it is not finished."""
        try:
            document, _ = read_json(self._store, graph_key(request.graph_id))
        except NotFoundError:
            return None
        return self.whole(request, document)

    def whole(self, request: GraphRequest, document: Json) -> Json:
        """Return a graph's document with what was measured on it."""
        summary = self.write(request, document)
        return {**document, **{key: summary[key] for key in ("interventions", "faithfulness") if key in summary}}

    def write(self, request: GraphRequest, document: Json) -> Json:
        """Write the summary of a graph's document, unless there is one; return the one that is there."""
        if (there := self._stored(request)) is not None:
            return there
        summary = {
            "create_s": request.create_s,
            "tokens": document["tokens"],
            "statistics": document["statistics"],
            "interventions": [],
        }
        key = summary_key(request.graph_id)
        try:
            create_json(self._store, key, summary)
        except AlreadyExistsError:
            # Another process was faster, or this is left of a graph that had this id before.
            summary = update_json(
                self._store, key, lambda there: there if there["create_s"] == request.create_s else summary
            )
        return summary

    def add_intervention(self, request: GraphRequest, result: Json) -> None:
        """Keep what an intervention measured. NotFoundError where the graph was deleted meanwhile."""
        self.get(request)
        update_json(
            self._store,
            summary_key(request.graph_id),
            lambda summary: {**summary, "interventions": [*summary["interventions"], result]},
        )

    def set_faithfulness(self, request: GraphRequest, result: Json) -> None:
        """Keep how far a graph can be trusted, in place of what was measured before. NotFoundError as above."""
        self.get(request)
        update_json(self._store, summary_key(request.graph_id), lambda summary: {**summary, "faithfulness": result})

    def _stored(self, request: GraphRequest) -> Json | None:
        try:
            summary, _ = read_json(self._store, summary_key(request.graph_id))
        except NotFoundError:
            return None
        return summary if summary["create_s"] == request.create_s else None
