"""
What the core needs from outside: a model that runs, files that can be read, and a catalog that takes shards.

Legend: B sequences, P positions, L layers, D d_model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from weft_activations.core.records import ReadBudget, Record
from weft_store.shard import LayerStatistics

__all__ = [
    "Array",
    "CommittedShard",
    "DatasetCatalog",
    "DatasetSpec",
    "DatasetState",
    "Decoding",
    "Doubles",
    "Floats",
    "Freeze",
    "Intervention",
    "InterventionKind",
    "MlpStop",
    "ModelBackend",
    "ModelInfo",
    "ModelInput",
    "PassPlan",
    "PassScore",
    "Passes",
    "RecordFormat",
    "Spectrogram",
    "SpeechBackend",
    "SpeechSizes",
    "Split",
    "UploadTarget",
]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpeechSizes:
    """
    What a model of speech has besides its decoder, whose sizes stand in `ModelInfo`.

    Attributes:
        num_layers: Of the encoder.
        num_heads: Of an encoder's layer.
        d_mlp: Of an encoder's layer.
        num_frames: Positions of the encoder; it always reads so many.
        num_steps: Steps of the spectrogram that become these frames.
        num_mel_bins: Of the spectrogram.
        sampling_rate: Of audio, in Hz.
        max_samples: Longest audio.
        end_token_id: What its tokenizer ends a transcript with.
    """

    num_layers: int
    num_heads: int
    d_mlp: int
    num_frames: int
    num_steps: int
    num_mel_bins: int
    sampling_rate: int
    max_samples: int
    end_token_id: int


@dataclass(frozen=True)
class ModelInfo:
    """
    What a model is.

    Attributes:
        revision: Hex SHA-256 of its configuration, weights and tokenizer.
        d_head: Width of a head.
        d_mlp: Width of an MLP's hidden layer.
        components: What can be captured, `*` for the layer; see `components.component_patterns`.
        shown_in_part: The model has other components that another backend shows.
        speech: What a model of speech reads; None for all others.
    """

    model_id: str
    architecture: str
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_tokens: int
    revision: str
    data_type: str
    bos_token_id: int | None
    d_head: int
    d_mlp: int
    components: tuple[str, ...]
    shown_in_part: bool = False
    speech: SpeechSizes | None = None


class InterventionKind(Enum):
    """What is done with the value at a hook."""

    ADD = "add"
    SET = "set"
    SCALE = "scale"
    ABLATE = "ablate"


@dataclass(frozen=True)
class Intervention:
    """
    One change to a forward pass.

    Attributes:
        layer: From 0; None for a component of the whole model.
        hook: A component, without the layer.
        kind: What is done.
        positions: Which entries of the first dim P, each once; empty means all.
        value: For ADD and SET, float32 of a shape that broadcasts to what was chosen, in the component's order of dims.
        factor: For SCALE.
        heads: Which entries of the first dim of a component of heads, each once; empty means all.
        neurons: Which entries of the last dim, each once; empty means all.
        direction: Float32 of length 1, along the last dim: of the change, only its part along it is made.
        row: Of a batch, the one sequence that it touches; None means all.
    """

    layer: int | None
    hook: str
    kind: InterventionKind
    positions: tuple[int, ...] = ()
    value: npt.NDArray[np.float32] | None = None
    factor: float = 1.0
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    direction: npt.NDArray[np.float32] | None = None
    row: int | None = None

    @property
    def name(self) -> str:
        """The component with its layer."""
        return self.hook if self.layer is None else f"layers.{self.layer}.{self.hook}"


@dataclass(frozen=True)
class Freeze:
    """What is held at its value without interventions."""

    attention_patterns: bool = False
    norm_scales: bool = False
    mlp_outputs: bool = False

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return self.attention_patterns or self.norm_scales or self.mlp_outputs


@dataclass(frozen=True)
class PassPlan:
    """
    A pass with somebody else in the place of MLPs; a row is a token of the batch, sequence after sequence.

    Attributes:
        read_layers: Layers whose MLP inputs are wanted.
        read_output_norms: The norms of their own outputs are wanted too.
        replaced_layers: Layers whose outputs are given.
        ablated_layers: Layers whose outputs are zero.
        kept_rows: Rows that keep every MLP's own output and are not scored.
    """

    read_layers: tuple[int, ...] = ()
    read_output_norms: bool = False
    replaced_layers: tuple[int, ...] = ()
    ablated_layers: tuple[int, ...] = ()
    kept_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class MlpStop:
    """
    Where a pass stopped; N rows, D d_model.

    Attributes:
        layer: From 0.
        input_ND: What the MLP reads; None where it was not asked for.
        output_norm_N: Norms of its own output; None where they were not asked for.
        is_replaced: The pass waits for the output.
    """

    layer: int
    input_ND: Floats | None
    output_norm_N: Floats | None
    is_replaced: bool


@dataclass(frozen=True)
class PassScore:
    """The fields of weft.activations.v1.ReplaceScore."""

    tokens: int
    model_cross_entropy_sum: float
    cross_entropy_sum: float
    kl_sum: float
    agreed: int


class Passes(Protocol):
    """The passes of one batch of sequences. Calls block and come from one thread at a time."""

    def begin(self, plan: PassPlan) -> MlpStop | PassScore:
        """Begin a pass and run to its first stop, or its end."""
        ...

    def go_on(self, output_ND: Floats | None) -> MlpStop | PassScore:
        """Give the output of the MLP where the pass stopped, None where it was only read, and run to the next stop."""
        ...


class Decoding(Protocol):
    """A model that reads one text in steps. Calls block and come from one thread at a time."""

    def step(self, token_ids: Sequence[int]) -> Floats:
        """Read tokens after those read so far, and return float32 logits [V] of the last."""
        ...


class ModelBackend(Protocol):
    """
    Base models by id. Calls block and come from one thread at a time; a model is loaded by the first that needs it.

    Raises (every call with a model id): NotFoundError, no such model; FailedPreconditionError, it cannot be run here.
    """

    @property
    def on_processor(self) -> bool:
        """Whether passes run on this machine's processors, and not on a device beside them."""
        ...

    def model_ids(self) -> list[str]:
        """List the models there are, in order."""
        ...

    def describe(self, model_id: str) -> ModelInfo:
        """Describe a model without loading its weights into memory."""
        ...

    def tokenize(self, model_id: str, text: str, *, special_tokens: bool = True) -> list[int]:
        """Turn text into token ids, with what the model's tokenizer adds."""
        ...

    def token_pieces(self, model_id: str, token_ids: Sequence[int]) -> list[bytes]:
        """Turn each token id into its bytes: those of a run, one after the other, are its text in UTF-8."""
        ...

    def forward(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one prompt and return float32 captures by hook, in the shapes of `hooks.hook_shape`."""
        ...

    def streams(
        self,
        model_id: str,
        turns: Sequence[Sequence[npt.NDArray[np.int64]]],
        into: Mapping[str, npt.NDArray[np.float32]],
        others_wait: Callable[[], bool] = lambda: False,
    ) -> int:
        """
        Run sequences, of any lengths, and write down what lies at some hooks of every layer.

        Args:
            turns: Token ids of sequences; those of a turn are run together.
            into: By hook, without the layer, where it is written, float32 [L, T, D]: of each sequence all positions but
                the first, one sequence after the other.
            others_wait: Asked before each turn but the first, on any thread; if so, this turn is left to another call.

        Returns:
            How many turns were run.
        """
        ...

    def decoding(self, model_id: str, interventions: Sequence[Intervention] = ()) -> Decoding:
        """
        Prepare to read token after token.

        Args:
            model_id: The model.
            interventions: Made in every step, but those with positions in the first alone, which reads the prompt.
        """
        ...

    def passes(self, model_id: str, sequences: Sequence[Sequence[int]], input_hook: str) -> Passes:
        """Prepare passes over sequences of one length; `input_hook` names what an MLP reads, without the layer."""
        ...

    def forward_rows(
        self, model_id: str, token_ids: Sequence[int], rows: Sequence[Sequence[Intervention]], hooks: Sequence[str]
    ) -> dict[str, Floats]:
        """
        Run one prompt many times in one batch, each row with interventions of its own.

        Returns:
            float32 captures by hook, the row first, then as `forward` returns them.

        Raises:
            UnimplementedError: This backend changes nothing inside a pass.
        """
        ...

    def unembed(self, model_id: str, resid_ND: Floats) -> Floats:
        """
        Take residual streams through the final norm and the unembedding: float32 [N, V], after any soft cap.

        Raises:
            UnimplementedError: This backend has no such step by itself.
        """
        ...

    def neuron_directions(self, model_id: str, layer: int, directions_ND: Doubles) -> Doubles:
        """
        Return what one unit of each of an MLP's M neurons writes along directions: [N, M].

        Raises:
            UnimplementedError: This backend does not show its weights.
        """
        ...

    def logit_directions(self, model_id: str, token_ids: Sequence[int]) -> tuple[Doubles, Doubles]:
        """
        Return directions [N, D] and biases [N] with which a logit is stream / scale @ direction + bias, before a cap.

        Raises:
            UnimplementedError: This backend does not show its weights.
        """
        ...


@dataclass(frozen=True)
class Spectrogram:
    """
    What an encoder of speech reads.

    Attributes:
        digest: Tells two of them apart.
        features_NS: Log-mel, float32.
    """

    digest: str
    features_NS: Floats = field(compare=False)


@dataclass(frozen=True)
class ModelInput:
    """What a pass reads: tokens, and in a model of speech a spectrogram besides."""

    token_ids: tuple[int, ...]
    spectrogram: Spectrogram | None = None


@runtime_checkable
class SpeechBackend(Protocol):
    """A backend that has models of speech too. It raises what `ModelBackend` does."""

    def log_mel(self, model_id: str, samples_T: Floats) -> Floats:
        """Turn audio, -1 to 1, at the model's rate and no longer than it reads, into its log-mel features [N, S]."""
        ...

    def forward_speech(
        self,
        model_id: str,
        features_NS: Floats,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, Floats]:
        """Run one recording and the tokens that were said so far; see `ModelBackend.forward`."""
        ...


class RecordFormat(Protocol):
    """A kind of file with documents."""

    @property
    def suffixes(self) -> Sequence[str]:
        """Ends of the names of such files."""
        ...

    def records(self, path: Path, name: str, field: str, budget: ReadBudget) -> Iterator[Record]:
        """
        Read a file, record by record, broken ones too.

        Args:
            path: Where it lies on this machine.
            name: What it is called; its end says how it is compressed.
            field: Where the text of a record is, where records have fields.
            budget: Told of every byte before much of it is in memory.

        Raises:
            FailedPreconditionError: The file as a whole cannot be read.
        """
        ...


class Split(Enum):
    """Which part of a dataset."""

    TRAIN = "train"
    HELD_OUT = "held_out"


class DatasetState(Enum):
    """Whether a dataset still grows."""

    OPEN = "open"
    SEALED = "sealed"


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset is made of; the fields of weft.cache.v1.DatasetSpec."""

    model: str
    model_revision: str
    num_layers: int
    d_model: int
    input_hook: str
    output_hook: str
    codec: str
    target_fvu: float
    corpus: str
    corpus_digest: str
    lineage: str = ""


@dataclass(frozen=True)
class CommittedShard:
    """A shard as its record says; the fields of weft.cache.v1.Shard."""

    index: int
    key: str
    sha256: str
    size_bytes: int
    num_tokens: int
    split: Split
    row_group_tokens: int
    statistics: Sequence[LayerStatistics]


@dataclass(frozen=True)
class UploadTarget:
    """Where a shard goes; `committed` is the one that is there already, and then nothing has to be put."""

    key: str
    url: str
    committed: CommittedShard | None


class DatasetCatalog(Protocol):
    """
    The catalog of datasets.

    Raises (every call): UnavailableError where the catalog cannot be reached; the same call may be sent again.
    """

    async def create_dataset(self, dataset_id: str, spec: DatasetSpec) -> DatasetState:
        """Create a dataset, or find it there with the same spec. AlreadyExistsError where its spec is another."""
        ...

    async def find_dataset(self, dataset_id: str) -> tuple[DatasetSpec, DatasetState] | None:
        """Describe a dataset; None where there is none."""
        ...

    async def begin_shard(self, dataset_id: str, index: int) -> UploadTarget:
        """Tell where a shard goes."""
        ...

    async def commit_shard(self, dataset_id: str, shard: CommittedShard) -> CommittedShard:
        """Add a shard; the first of an index wins and is returned ever after."""
        ...

    async def seal_dataset(self, dataset_id: str, num_shards: int) -> None:
        """Make a dataset immutable; once sealed, the same call is success."""
        ...
