"""
Token after token through a model that keeps what it read.

Legend: P positions, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from weft_activations.adapters.hooked_pass import run_pass
from weft_activations.adapters.places import Located
from weft_activations.core.ports import Floats, Intervention

__all__ = ["CachedDecoding"]


class CachedDecoding:
    """
    The `Decoding` of one prompt.

    Args:
        located: The model.
        interventions: Those with positions are made in the first step alone.
        device: The model's.
    """

    def __init__(self, located: Located, interventions: Sequence[Intervention], device: str) -> None:
        self._located, self._device = located, device
        self._interventions = list(interventions)
        self._cache = DynamicCache(config=located.model.config)

    def step(self, token_ids: Sequence[int]) -> Floats:
        """Read tokens after those read so far, and return logits [V] of the last."""
        with torch.inference_mode():
            tokens_1P = torch.tensor([list(token_ids)], device=self._device)
            kept = run_pass(self._located, tokens_1P, ["logits"], interventions=self._interventions, cache=self._cache)
        self._interventions = [each for each in self._interventions if not each.positions]
        return np.asarray(kept["logits"][0].float().cpu().numpy())
