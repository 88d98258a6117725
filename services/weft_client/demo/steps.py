"""
The demo's steps. Each asks for what it needs by a name that depends on what it is made from, so that a step whose
result is there is not done again, and one that was cut off goes on.
"""

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.attribution.v1 import messages_pb2 as attribution
from weft.training.v1 import messages_pb2 as training
from weft_client.aio.client import AsyncClient
from weft_client.demo.corpus import python_topics
from weft_client.demo.graph_json import strongest_feature
from weft_client.demo.patience import patiently
from weft_client.demo.plan import MODEL, DemoPlan, graph_name, run_name, transcoder_name
from weft_client.demo.progress import Step, Steps
from weft_client.demo.summary import DemoSummary, GraphSummary
from weft_client.names import short_id
from weft_common.errors import NotFoundError


def _request_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


class Demo:
    """
    Drives the services through the public client and notes what they say.

    Args:
        client: Of the services that run.
        plan: What is asked for.
        folder: Where graphs are written to, `.weft/demo`.
        steps: Where progress is shown.
        summary: Filled in on the way.
    """

    def __init__(self, client: AsyncClient, plan: DemoPlan, folder: Path, steps: Steps, summary: DemoSummary) -> None:
        self._client = client
        self._plan = plan
        self._folder = folder
        self._steps = steps
        self._summary = summary

    async def run(self) -> None:
        """Harvest, train, export and explain."""
        dataset = await self.harvest()
        run = await self.train(dataset)
        transcoder = await self.export(run)
        for prompt in self._plan.prompts:
            await self.explain(transcoder, prompt)

    @asynccontextmanager
    async def _timed(self, key: str, title: str) -> AsyncIterator[Step]:
        started = time.monotonic()
        with self._steps.step(title) as step:
            yield step
        self._summary.step_seconds[key] = round(time.monotonic() - started, 2)

    async def _finish(
        self,
        step: Step,
        operation: operations_pb2.Operation,
        note: Callable[[Message], str],
    ) -> Message:
        def show(metadata: Message) -> None:
            progress = metadata.progress  # type: ignore[attr-defined]  # every metadata of weft's has one
            step.update(progress.completed, progress.total, note(metadata))

        return await self._client.operations.wait(operation, progress=show)

    async def harvest(self) -> str:
        """Upload the text, harvest it, and return the dataset's name."""
        async with self._timed("harvest", "Harvest activations") as step:
            documents = list(python_topics())
            text_digest = hashlib.sha256(b"\0".join(text for _, text in documents)).hexdigest()
            corpus_id = f"python-topics-{text_digest[:10]}"
            corpus = await patiently(lambda: self._client.corpora.upload(corpus_id, documents))
            spec = self._plan.harvest_spec(corpus.name, corpus.digest)
            harvest_id = short_id(spec.dataset)
            if await self._exists(lambda: self._client.harvests.get(harvest_id)):
                self._summary.reused.append("dataset")
            operation = await patiently(
                lambda: self._client.harvests.create(harvest_id, spec=spec, request_id=_request_id(spec.dataset))
            )
            await self._finish(step, operation, lambda metadata: f"{metadata.progress.completed:,} tokens")  # type: ignore[attr-defined]
            harvest = await patiently(lambda: self._client.harvests.get(harvest_id))
            dataset = await patiently(lambda: self._client.datasets.get(spec.dataset))
            stats = await patiently(lambda: self._client.datasets.stats(spec.dataset))
            model = await patiently(lambda: self._client.models.get(MODEL))
            summary = self._summary
            summary.model, summary.num_layers, summary.dataset = MODEL, model.num_layers, dataset.name
            summary.tokens_held_out = dataset.num_held_out_tokens
            summary.tokens_harvested = dataset.num_train_tokens + dataset.num_held_out_tokens
            summary.tokens_skipped = harvest.tokens_skipped
            summary.bytes_per_token, summary.bits_per_value = stats.bytes_per_token, stats.bits_per_value
            summary.cache_fvu_max = stats.fvu_max
            summary.harvest_tokens_per_s = harvest.tokens_per_s
            step.note(f"{summary.tokens_harvested:,} tokens, {stats.bits_per_value:.2f} bits a value")
            return dataset.name

    async def train(self, dataset: str) -> str:
        """Train on two ranks, evaluate on held-out data, and return the run's name."""
        async with self._timed("train", "Train on two ranks") as step:
            spec = self._plan.training_spec(dataset)
            name = run_name(spec)
            run_id = short_id(name)
            if await self._exists(lambda: self._client.runs.get(run_id)):
                self._summary.reused.append("run")
            operation = await patiently(
                lambda: self._client.runs.create(run_id, spec=spec, request_id=_request_id(name))
            )
            run = await patiently(lambda: self._client.runs.get(run_id))
            if run.state in (training.RUN_STATE_PAUSED, training.RUN_STATE_FAILED):
                await patiently(lambda: self._client.runs.resume(run_id))
            rates: list[float] = []
            dead_share = 0.0
            async for event in self._client.runs.watch(run_id):
                if event.HasField("metrics"):
                    metrics = event.metrics
                    rates.append(metrics.tokens_per_s)
                    dead_share = metrics.dead_share
                    step.update(
                        metrics.step,
                        spec.num_steps,
                        f"loss {metrics.loss:.3f}  EV {metrics.explained_variance:.3f}  L0 {metrics.l0:.0f}  "
                        f"{metrics.tokens_per_s:,.0f} tok/s",
                    )
            await self._client.operations.wait(operation)
            run = await patiently(lambda: self._client.runs.get(run_id))
            summary = self._summary
            summary.run = name
            summary.train_tokens = run.metrics.tokens
            # The median: the first step compiles the kernels and a checkpoint's step waits for the disk.
            summary.train_tokens_per_s = sorted(rates)[len(rates) // 2] if rates else 0.0
            summary.world_size = spec.feature_ranks * max(1, spec.data_ranks)
            summary.explained_variance = run.evaluation.explained_variance
            summary.l0_per_layer = list(run.evaluation.l0_by_layer)
            summary.dead_share = dead_share
            evaluation = run.evaluation
            step.note(
                f"explained variance {evaluation.explained_variance:.3f} on {evaluation.tokens:,} held-out tokens"
            )
            return name

    async def export(self, run: str) -> str:
        """Write the run's last checkpoint in circuit-tracer's layout and return the transcoder's name."""
        async with self._timed("export", "Export the transcoder") as step:
            name = transcoder_name(run)
            if await self._exists(lambda: self._client.transcoders.get(name)):
                self._summary.reused.append("transcoder")
            else:
                operation = await patiently(lambda: self._client.runs.export(run, transcoder_id=short_id(name)))
                await self._finish(step, operation, lambda metadata: metadata.progress.stage)  # type: ignore[attr-defined]
            transcoder = await patiently(lambda: self._client.transcoders.get(name))
            self._summary.transcoder = name
            self._summary.explained_variance_exported = transcoder.evaluation.explained_variance
            step.note(f"{transcoder.size_bytes / 2**20:,.0f} MiB, {transcoder.activation}")
            return name

    async def explain(self, transcoder: str, prompt: str) -> None:
        """Make a prompt's graph, ablate its strongest feature, and write the graph down."""
        spec = self._plan.graph_spec(transcoder, prompt)
        name = graph_name(spec)
        graph_id = short_id(name)
        async with self._timed(f"graph {prompt!r}", f"Explain {prompt[:18]!r}") as step:
            reused = await self._exists(lambda: self._client.graphs.get(graph_id))
            operation = await patiently(
                lambda: self._client.graphs.create(graph_id, spec=spec, request_id=_request_id(name))
            )
            await self._finish(step, operation, lambda metadata: metadata.progress.stage)  # type: ignore[attr-defined]
            graph = await patiently(lambda: self._client.graphs.get(graph_id))
            node = strongest_feature(graph.json)
            if not graph.interventions:
                change = attribution.FeatureIntervention(node_id=node, factor=0.0)
                await patiently(lambda: self._client.graphs.intervene(graph_id, interventions=[change]))
                graph = await patiently(lambda: self._client.graphs.get(graph_id))
            path = self._folder / "graphs" / f"{graph_id}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(graph.json)
            effect = graph.interventions[0].effects[0]
            statistics = graph.statistics
            self._summary.graphs.append(
                GraphSummary(
                    prompt=prompt,
                    target=effect.text,
                    nodes=statistics.num_nodes,
                    edges=statistics.num_edges,
                    replacement_score=statistics.replacement_score,
                    completeness_score=statistics.completeness_score,
                    seconds=statistics.seconds,
                    conservation_error=statistics.conservation_error,
                    intervention_node=graph.interventions[0].interventions[0].node_id,
                    intervention_predicted=effect.predicted,
                    intervention_measured=effect.measured_frozen,
                    intervention_predicted_total=effect.predicted_total,
                    intervention_measured_free=effect.measured,
                    json=str(path),
                    reused=reused,
                )
            )
            step.note(f"{effect.text!r}: {statistics.num_nodes:,} nodes, {statistics.num_edges:,} edges")

    async def _exists(self, get: Callable[[], Awaitable[object]]) -> bool:
        try:
            await patiently(get)
        except NotFoundError:
            return False
        return True
