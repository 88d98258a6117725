"""
What the demo asks for. Resources are named after a digest of what they are made from, so that a second run finds the
first one's and a changed demo makes its own.
"""

import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message

from weft.activations.v1 import messages_pb2 as activations
from weft.attribution.v1 import messages_pb2 as attribution
from weft.training.v1 import messages_pb2 as training

MODEL = "models/smollm2-135m-instruct"
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "In Python, a function is defined with the keyword",
)


def _name(noun: str, *made_from: Message | str) -> str:
    sha256 = hashlib.sha256()
    for part in made_from:
        sha256.update(part.encode() if isinstance(part, str) else part.SerializeToString(deterministic=True))
    return f"{noun}/demo-{sha256.hexdigest()[:10]}"


@dataclass(frozen=True)
class DemoPlan:
    """
    The demo's sizes; everything else follows from them.

    Args:
        num_tokens: Tokens to harvest, held-out ones included.
        num_features: Features a layer; one in sixteen of them is active at a token.
        num_steps: Optimiser steps.
        step_tokens: Tokens of one step.
        prompts: What is explained.
    """

    num_tokens: int = 40_600
    num_features: int = 512
    num_steps: int = 38
    step_tokens: int = 1_024
    prompts: tuple[str, ...] = PROMPTS

    def harvest_spec(self, corpus: str, corpus_digest: str) -> activations.HarvestSpec:
        """Return the harvest, whose dataset's name depends on all of it and on the corpus."""
        spec = activations.HarvestSpec(
            model=MODEL,
            corpus=corpus,
            num_tokens=self.num_tokens,
            held_out_share=0.1,
            sequence_tokens=256,
            streams=activations.Streams(input_hook="mlp_in", output_hook="mlp_out"),
            codec=activations.Codec(kind="uniform", target_fvu=1e-3),
            max_norm_ratio=20.0,
            lease_sequences=8,
        )
        spec.dataset = _name("datasets", spec, corpus_digest)
        return spec

    def training_spec(self, dataset: str) -> training.TrainingSpec:
        """Return the training run on a dataset: TopK, two ranks on the feature axis."""
        return training.TrainingSpec(
            dataset=dataset,
            num_features=self.num_features,
            activation=training.ACTIVATION_TOP_K,
            top_k=max(1, self.num_features // 16),
            num_steps=self.num_steps,
            step_tokens=self.step_tokens,
            feature_ranks=2,
            data_ranks=1,
            learning_rate=2e-3,
            warmup_steps=min(5, self.num_steps // 4),
            decay_share=0.3,
            adam_beta1=0.9,
            adam_beta2=0.999,
            clip_norm=1.0,
            dead_after_tokens=20_000,
            checkpoint_steps=20,
            seed=1,
        )

    def graph_spec(self, transcoder: str, prompt: str) -> attribution.GraphSpec:
        """Return the graph of one prompt; its targets are the model's own top tokens."""
        # Less is kept than by default, since a page with a tenth of the edges says the same at first sight.
        return attribution.GraphSpec(
            model=MODEL, transcoder=transcoder, prompt=prompt, node_threshold=0.6, edge_threshold=0.9
        )


def run_name(spec: training.TrainingSpec) -> str:
    """Return the run's name, `runs/demo-...`."""
    return _name("runs", spec)


def transcoder_name(run: str) -> str:
    """Return the name of the transcoder that a run is exported to."""
    return _name("transcoders", run)


def graph_name(spec: attribution.GraphSpec) -> str:
    """Return the graph's name, `graphs/demo-...`."""
    return _name("graphs", spec)
