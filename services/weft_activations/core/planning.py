"""Works out the plan of a harvest: reads the corpus, tokenises it, cuts it into leases."""

import asyncio
from dataclasses import dataclass

from weft_activations.core.corpus import read_corpus, read_documents
from weft_activations.core.harvest_records import HarvestSpec
from weft_activations.core.inference import Inference
from weft_activations.core.kinds import check_decoder
from weft_activations.core.plan import HarvestPlan, plan_harvest
from weft_activations.core.ports import ModelBackend, ModelInfo
from weft_store.port import ObjectStore

__all__ = ["HarvestPlanner", "Planned"]


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from; `num_broken` records of the corpus's files were left out."""

    plan: HarvestPlan
    info: ModelInfo
    corpus_digest: str
    num_broken: int = 0


class HarvestPlanner:
    """
    Plans harvests; the last plan is kept, because it is asked for when a harvest is created and again when it runs.

    Args:
        store: The bucket, for corpora.
        inference: For tokenizers.
    """

    def __init__(self, store: ObjectStore, inference: Inference) -> None:
        self._store = store
        self._inference = inference
        self._last: tuple[HarvestSpec, Planned] | None = None

    async def plan(self, spec: HarvestSpec) -> Planned:
        """
        Plan a harvest.

        Raises:
            NotFoundError: No such model or corpus.
            FailedPreconditionError: The corpus is too small, or the model no decoder.
        """
        info = await self._inference.describe(spec.model)
        check_decoder(info, "a harvest, which transcoders are trained on and measured with,", field="spec.model")
        corpus = await asyncio.to_thread(read_corpus, self._store, spec.corpus)
        if self._last is not None:
            last_spec, last = self._last
            if (last_spec, last.info, last.corpus_digest) == (spec, info, corpus.digest):
                return last
        texts = await asyncio.to_thread(lambda: list(read_documents(self._store, corpus)))

        def tokenize(backend: ModelBackend) -> list[list[int]]:
            return [backend.tokenize(spec.model, text, special_tokens=False) if text else [] for text in texts]

        documents = await self._inference.on_model_thread(tokenize)
        plan = await asyncio.to_thread(
            lambda: plan_harvest(
                documents,
                corpus_digest=corpus.digest,
                bos_token_id=info.bos_token_id,
                num_tokens=spec.num_tokens,
                held_out_share=spec.held_out_share,
                sequence_tokens=spec.sequence_tokens,
                lease_sequences=spec.lease_sequences,
                packing=spec.packing,
            )
        )
        planned = Planned(plan, info, corpus.digest, corpus.origin.num_broken if corpus.origin else 0)
        self._last = spec, planned
        return planned
