"""
What is written down of a harvest.

    harvests/{id}/harvest.json       the request, what it was planned to be, and how it ended
    claims/datasets/{id}.json        which harvest may write a dataset

The record is created once and changes only by compare-and-swap.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from weft_activations.core.leases import DoneLease
from weft_activations.core.packing import BY_DOCUMENT, Packing, StartRule
from weft_activations.core.ports import DatasetSpec, ModelInfo, Split
from weft_common.errors import AlreadyExistsError, NotFoundError
from weft_store.documents import create_json, list_ids, read_json, update_json
from weft_store.port import ObjectStore

__all__ = ["HarvestProgress", "HarvestRecord", "HarvestRecords", "HarvestSpec", "StreamPair"]


@dataclass(frozen=True)
class StreamPair:
    """An input and an output of every layer, and the dataset that they go to; hooks without the layer."""

    dataset: str
    input_hook: str
    output_hook: str


@dataclass(frozen=True)
class HarvestSpec:
    """
    What a harvest reads and how; ids without their collection.

    Attributes:
        also: Further pairs of streams, kept in the same passes.
    """

    model: str
    dataset: str
    corpus: str
    num_tokens: int
    held_out_share: float
    sequence_tokens: int
    input_hook: str
    output_hook: str
    codec: str
    target_fvu: float
    max_norm_ratio: float
    lease_sequences: int
    packing: Packing = BY_DOCUMENT
    also: tuple[StreamPair, ...] = ()

    @property
    def pairs(self) -> tuple[StreamPair, ...]:
        """All pairs; norms are measured on the outputs of the first."""
        return (StreamPair(self.dataset, self.input_hook, self.output_hook), *self.also)

    @property
    def hooks(self) -> tuple[str, ...]:
        """What one pass keeps of every layer, each hook once."""
        return tuple(dict.fromkeys(hook for pair in self.pairs for hook in (pair.input_hook, pair.output_hook)))

    def pair_of(self, dataset: str) -> StreamPair:
        """Return the pair that goes to one of the harvest's datasets."""
        return next(pair for pair in self.pairs if pair.dataset == dataset)

    def dataset_spec(self, pair: StreamPair, info: ModelInfo, corpus_digest: str, lineage: str) -> DatasetSpec:
        """Return what the dataset of a pair is created as."""
        return DatasetSpec(
            model=f"models/{self.model}",
            model_revision=info.revision,
            num_layers=info.num_layers,
            d_model=info.d_model,
            input_hook=pair.input_hook,
            output_hook=pair.output_hook,
            codec=self.codec,
            target_fvu=self.target_fvu,
            corpus=f"corpora/{self.corpus}",
            corpus_digest=corpus_digest,
            lineage=lineage,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        packing = {**asdict(self.packing), "start_rule": self.packing.start_rule.value}
        stored = {**asdict(self), "packing": packing, "also": [asdict(pair) for pair in self.also]}
        if not self.also:
            # As harvests of before there were further pairs are stored, whose lineage must stay what it is.
            del stored["also"]
        return stored

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "HarvestSpec":
        """Read the stored form; what was written before there was a packing has none."""
        packing = document.get("packing", {})
        return cls(
            **{
                **document,
                "also": tuple(StreamPair(**pair) for pair in document.get("also", ())),
                "packing": Packing(
                    **{
                        **packing,
                        "start_rule": StartRule(packing.get("start_rule", StartRule.MODEL.value)),
                        "skipped_token_ids": tuple(packing.get("skipped_token_ids", ())),
                    }
                ),
            }
        )


@dataclass(frozen=True)
class HarvestRecord:
    """
    A harvest as it is stored.

    Attributes:
        attempt: From 1; grows when a harvest that failed or was cancelled is asked for again.
        plan_digest: What every replica's plan must come to.
        mean_norms: Mean output norm by layer that `max_norm_ratio` is relative to; None until one replica has measured.
        corpus_broken_records: Left out when the corpus was imported.
        paused: No replica takes a lease.
        versions: Of weft and what it runs models with, where the harvest was asked for.
    """

    harvest_id: str
    spec: HarvestSpec
    request_id: str
    create_s: float
    attempt: int
    model_revision: str
    corpus_digest: str
    plan_digest: str
    num_leases: int
    num_tokens: int
    sealed: bool = False
    mean_norms: tuple[float, ...] | None = None
    corpus_broken_records: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False

    @property
    def operation_id(self) -> str:
        """Id of the operation that does the work of this attempt."""
        return self.harvest_id if self.attempt == 1 else f"{self.harvest_id[:50]}.{self.attempt}"

    @property
    def lineage(self) -> str:
        """
        What the dataset's manifest says of how it was made, as JSON; the same on every replica.

        Empty for a harvest without versions: it was asked for before there was a lineage, and its dataset has none.
        """
        if not self.versions:
            return ""
        return json.dumps(
            {
                "harvest": f"harvests/{self.harvest_id}",
                "plan_digest": self.plan_digest,
                "spec": self.spec.to_json(),
                "versions": dict(self.versions),
            },
            sort_keys=True,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "HarvestRecord":
        """Read the stored form."""
        norms = document["mean_norms"]
        return cls(
            **{
                **document,
                "spec": HarvestSpec.from_json(document["spec"]),
                "mean_norms": None if norms is None else tuple(norms),
            }
        )


@dataclass(frozen=True)
class HarvestProgress:
    """How far a harvest is, all replicas together."""

    record: HarvestRecord
    tokens_committed: int
    tokens_held_out: int
    tokens_skipped: int
    num_leases_done: int
    tokens_per_s: float

    @classmethod
    def of(cls, record: HarvestRecord, done: list[DoneLease]) -> "HarvestProgress":
        """Add up the leases that are done."""
        tokens = sum(lease.num_tokens for lease in done)
        seconds = max((lease.end_s for lease in done), default=0.0) - min(
            (lease.start_s for lease in done), default=0.0
        )
        return cls(
            record=record,
            tokens_committed=tokens,
            tokens_held_out=sum(lease.num_tokens for lease in done if lease.split == Split.HELD_OUT.value),
            tokens_skipped=sum(lease.num_skipped for lease in done),
            num_leases_done=len(done),
            tokens_per_s=tokens / seconds if seconds > 0 else 0.0,
        )


class HarvestRecords:
    """The harvests of a bucket. Calls block."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def find(self, harvest_id: str) -> HarvestRecord | None:
        """Read a harvest; None where there is none."""
        try:
            return HarvestRecord.from_json(read_json(self._store, _key(harvest_id))[0])
        except NotFoundError:
            return None

    def get(self, harvest_id: str) -> HarvestRecord:
        """Read a harvest. NotFoundError."""
        found = self.find(harvest_id)
        if found is None:
            raise NotFoundError(f"there is no harvest harvests/{harvest_id}; ListHarvests shows which there are")
        return found

    def ids(self) -> list[str]:
        """List all harvests."""
        return list(list_ids(self._store, "harvests/", "/harvest.json"))

    def create(self, record: HarvestRecord) -> HarvestRecord:
        """Write a new harvest, or find the one that another request wrote first."""
        try:
            create_json(self._store, _key(record.harvest_id), record.to_json())
        except AlreadyExistsError:
            return self.get(record.harvest_id)
        return record

    def change(self, harvest_id: str, change: Callable[[HarvestRecord], HarvestRecord]) -> HarvestRecord:
        """Change a harvest by compare-and-swap."""
        document = update_json(
            self._store, _key(harvest_id), lambda there: change(HarvestRecord.from_json(there)).to_json()
        )
        return HarvestRecord.from_json(document)

    def set_mean_norms(self, harvest_id: str, mean_norms: tuple[float, ...]) -> HarvestRecord:
        """Write the mean norms unless another replica has; what is stored then holds for all."""
        return self.change(
            harvest_id,
            lambda there: replace(there, mean_norms=mean_norms) if there.mean_norms is None else there,
        )

    def check_claim(self, dataset_id: str, harvest_id: str) -> None:
        """
        See that no harvest that still goes on, or can, writes a dataset.

        Raises:
            AlreadyExistsError: Another one does.
        """
        try:
            document, _ = read_json(self._store, _claim_key(dataset_id))
        except NotFoundError:
            return
        self._refuse_other(document, dataset_id, harvest_id)

    def writer_of(self, dataset_id: str) -> HarvestRecord:
        """Read the harvest that wrote, or writes, a dataset. NotFoundError: none did."""
        try:
            document, _ = read_json(self._store, _claim_key(dataset_id))
        except NotFoundError:
            raise NotFoundError(
                f"no harvest of this service wrote datasets/{dataset_id}; name a dataset of ListHarvests",
                field="dataset",
            ) from None
        return self.get(str(document["harvest"]))

    def claim_dataset(self, dataset_id: str, harvest_id: str) -> None:
        """
        Make a dataset this harvest's own, so that two never mix their shards.

        Raises:
            AlreadyExistsError: It is another harvest's.
        """
        claim = {"harvest": harvest_id}
        try:
            create_json(self._store, _claim_key(dataset_id), claim)
        except AlreadyExistsError:

            def take(document: dict[str, Any]) -> dict[str, Any]:
                self._refuse_other(document, dataset_id, harvest_id)
                return claim

            update_json(self._store, _claim_key(dataset_id), take)

    def _refuse_other(self, document: dict[str, Any], dataset_id: str, harvest_id: str) -> None:
        owner = str(document["harvest"])
        if owner == harvest_id:
            return
        other = self.find(owner)
        if other is not None and not other.sealed:
            raise AlreadyExistsError(
                f"datasets/{dataset_id} is being written by harvests/{owner}; choose another dataset id",
                field="spec.dataset",
            )


def _claim_key(dataset_id: str) -> str:
    return f"claims/datasets/{dataset_id}.json"


def _key(harvest_id: str) -> str:
    return f"harvests/{harvest_id}/harvest.json"
