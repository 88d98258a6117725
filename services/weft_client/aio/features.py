"""Features of a transcoder: their index, what is asked of it, and what fires on a text."""

from collections.abc import AsyncIterator, Sequence

from google.longrunning import operations_pb2

from weft.features.v1 import graphs_pb2, index_pb2, queries_pb2, service_pb2, steering_pb2
from weft_client.aio.calls import pages, unary
from weft_client.aio.feature_exports import AsyncFeatureExports
from weft_client.feature_requests import fields_mask, on_prompt_request
from weft_client.names import feature_name, full_name

READ_S = 300.0
"""Deadline of what runs the model or goes over all features of a layer, in seconds."""


class AsyncFeatures(AsyncFeatureExports):
    """What features read and write, where they are active, which are like them; served by the attribution service."""

    async def get(
        self, transcoder: str, *, layer: int, index: int, num_logits: int = 10, fields: Sequence[str] = ()
    ) -> service_pb2.Feature:
        """
        Describe one feature.

        Args:
            transcoder: The transcoder.
            layer: Layer that it reads.
            index: Index within it.
            num_logits: Top and bottom logits, 1 to 100.
            fields: Fields of Feature that are wanted; none means all but `target_logits` and `quiet_examples`.
        """
        request = service_pb2.GetFeatureRequest(
            name=feature_name(transcoder, layer, index), num_logits=num_logits, read_mask=fields_mask(fields)
        )
        return await unary(self._stub.GetFeature, request)

    async def index(
        self,
        transcoder: str,
        index_id: str,
        *,
        dataset: str,
        held_out: bool = False,
        max_tokens: int = 0,
        settings: index_pb2.FeatureIndexSettings | None = None,
        validate_only: bool = False,
    ) -> operations_pb2.Operation:
        """
        Start an index of a transcoder's features; wait for it with `operations.wait`.

        Args:
            transcoder: The transcoder.
            index_id: Id of the index; the same request again goes on with it.
            dataset: A sealed dataset that was harvested from its model, with what it reads.
            held_out: Take the held-out split.
            max_tokens: Stop after so many; 0 means all.
            settings: What is kept of each feature; 0 means the service's default.
            validate_only: Check everything and change nothing.
        """
        request = index_pb2.IndexFeaturesRequest(
            transcoder=full_name("transcoders", transcoder),
            index_id=index_id,
            dataset=full_name("datasets", dataset),
            held_out=held_out,
            max_tokens=max_tokens,
            settings=settings,
            validate_only=validate_only,
        )
        return await unary(self._stub.IndexFeatures, request)

    async def get_index(self, transcoder: str, index_id: str) -> index_pb2.FeatureIndex:
        """Describe one index."""
        name = f"{full_name('transcoders', transcoder)}/indexes/{index_id}"
        return await unary(self._stub.GetFeatureIndex, index_pb2.GetFeatureIndexRequest(name=name))

    def indexes(self, transcoder: str) -> AsyncIterator[index_pb2.FeatureIndex]:
        """All whole indexes of a transcoder, newest first; the first is the one that answers."""
        request = index_pb2.ListFeatureIndexesRequest(parent=full_name("transcoders", transcoder))
        return pages(self._stub.ListFeatureIndexes, request, lambda page: page.indexes)

    def list(
        self,
        transcoder: str,
        *,
        wanted: queries_pb2.FeatureFilter | None = None,
        order_by: str = "",
        page_size: int = 0,
        fields: Sequence[str] = (),
    ) -> AsyncIterator[service_pb2.Feature]:
        """
        Features by their figures, page by page for as long as they are read.

        Args:
            transcoder: The transcoder; it needs an index.
            wanted: Which; none means all.
            order_by: `layer`, `density`, `max_activation`, `mean_activation`, `decoder_norm`, `last_layer` or `score`,
                with ` desc` to have it fall.
            page_size: Features of one answer.
            fields: Fields of Feature that are wanted; none means all that lists fill.
        """
        request = queries_pb2.ListFeaturesRequest(
            parent=full_name("transcoders", transcoder),
            filter=wanted,
            order_by=order_by,
            page_size=page_size,
            read_mask=fields_mask(fields),
        )
        return pages(self._stub.ListFeatures, request, lambda page: page.features)

    def search(
        self,
        transcoder: str,
        *,
        label: str | None = None,
        token: str | None = None,
        token_id: int | None = None,
        wanted: queries_pb2.FeatureFilter | None = None,
        order_by: str = "",
        page_size: int = 0,
        fields: Sequence[str] = (),
    ) -> AsyncIterator[service_pb2.FoundFeature]:
        """
        Features by what is known of their meaning; give one of `label`, `token` and `token_id`.

        Args:
            transcoder: The transcoder; it needs an index.
            label: Words that the label has in it.
            token: Text of a token that the feature is strongest on.
            token_id: The same by its index into the vocabulary.
            wanted: Which features are looked at.
            order_by: As of `list`.
            page_size: Features of one answer.
            fields: As of `list`.
        """
        request = queries_pb2.SearchFeaturesRequest(
            parent=full_name("transcoders", transcoder),
            filter=wanted,
            order_by=order_by,
            page_size=page_size,
            read_mask=fields_mask(fields),
        )
        if label is not None:
            request.label = label
        if token is not None:
            request.token = token
        if token_id is not None:
            request.token_id = token_id
        return pages(self._stub.SearchFeatures, request, lambda page: page.features)

    async def on_prompt(
        self,
        transcoder: str,
        prompt: str,
        *,
        layers: Sequence[int] = (),
        features: Sequence[tuple[int, int]] = (),
        max_features: int = 0,
        fields: Sequence[str] = (),
    ) -> queries_pb2.GetActivationsOnPromptResponse:
        """
        Run a text through the model and tell what fires where, in one answer.

        Args:
            transcoder: The transcoder.
            prompt: The text.
            layers: Layers; none means all.
            features: Features by layer and index, told whether they fire or not; none means all that fire.
            max_features: Most features told; 0 means 100.
            fields: Fields of PromptFeature that are wanted; none means all. Labels cost nothing where they are not.
        """
        request = on_prompt_request(transcoder, prompt, layers, features, max_features, fields)
        return await unary(self._stub.GetActivationsOnPrompt, request, timeout_s=READ_S)

    def on_prompt_pages(
        self,
        transcoder: str,
        prompt: str,
        *,
        layers: Sequence[int] = (),
        features: Sequence[tuple[int, int]] = (),
        max_features: int = 0,
        page_size: int = 50,
        fields: Sequence[str] = (),
    ) -> AsyncIterator[queries_pb2.GetActivationsOnPromptResponse]:
        """
        The same page by page for as long as they are read, however many features fire; each page has the tokens.

        Args:
            transcoder: The transcoder.
            prompt: The text.
            layers: As of `on_prompt`.
            features: As of `on_prompt`.
            max_features: Most features told on all pages; 0 means all.
            page_size: Features of one page, 1 to 1,000.
            fields: As of `on_prompt`.
        """
        request = on_prompt_request(transcoder, prompt, layers, features, max_features, fields, page_size)
        return pages(self._stub.GetActivationsOnPrompt, request, lambda page: [page], timeout_s=READ_S)

    async def steer(
        self,
        transcoder: str,
        prompt: str,
        *,
        changes: Sequence[steering_pb2.PromptChange],
        max_new_tokens: int = 0,
        num_top_tokens: int = 0,
    ) -> steering_pb2.SteerOnPromptResponse:
        """
        Run a text undisturbed and with changed features: both next tokens, both continuations.

        Args:
            transcoder: The transcoder.
            prompt: The text.
            changes: What is changed, all at once; `feature_name` gives the names of features.
            max_new_tokens: Tokens that each run goes on for; 0 means 20.
            num_top_tokens: Most likely next tokens told of each run; 0 means 10.
        """
        request = steering_pb2.SteerOnPromptRequest(
            transcoder=full_name("transcoders", transcoder),
            prompt=prompt,
            changes=changes,
            max_new_tokens=max_new_tokens,
            num_top_tokens=num_top_tokens,
        )
        return await unary(self._stub.SteerOnPrompt, request, timeout_s=READ_S)

    def of_graph(self, graph: str, *, fields: Sequence[str] = ()) -> AsyncIterator[service_pb2.GraphFeature]:
        """Features that are nodes of a graph, the most influential first."""
        request = queries_pb2.ListGraphFeaturesRequest(graph=full_name("graphs", graph), read_mask=fields_mask(fields))
        return pages(self._stub.ListGraphFeatures, request, lambda page: page.features)

    def in_graphs(self, transcoder: str, *, layer: int, index: int) -> AsyncIterator[graphs_pb2.FeatureGraph]:
        """Finished graphs of the transcoder that a feature is a node of, newest first."""
        request = graphs_pb2.ListFeatureGraphsRequest(parent=feature_name(transcoder, layer, index))
        return pages(self._stub.ListFeatureGraphs, request, lambda page: page.graphs)

    def match(
        self, transcoder: str, other: str, *, layer: int, min_cosine: float = 0.0
    ) -> AsyncIterator[queries_pb2.FeatureMatch]:
        """For the features of a layer the most alike of another transcoder, by their decoders."""
        request = queries_pb2.MatchFeaturesRequest(
            transcoder=full_name("transcoders", transcoder),
            other=full_name("transcoders", other),
            layer=layer,
            min_cosine=min_cosine,
        )
        return pages(self._stub.MatchFeatures, request, lambda page: page.matches)
