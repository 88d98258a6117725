"""
Forward passes of one batch with somebody else in the place of some MLPs, scored against the model itself.

A pass is a generator that stops at every MLP that concerns somebody else, so that other work of the same thread comes
in between. The first pass of all, without changes, leaves the stream before every layer and its logits; later passes
begin at the first layer that they change.

Legend: B sequences, P positions, N = B x P rows, L layers, D d_model, V vocabulary.
"""

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch import Tensor

from weft_activations.adapters.torch_blocks import Parts
from weft_activations.core.ports import Floats, MlpStop, PassPlan, PassScore

__all__ = ["ReplacedPasses"]

_SCORED_ROWS = 64
"""Rows whose distributions are compared at once, in float64."""


class ReplacedPasses:
    """
    The passes of one batch; its calls come from one thread at a time.

    Args:
        parts: The model.
        tokens_BP: Token ids, on the model's device.
        input_hook: `mlp_in` or `resid_mid`.
        take_turn: Called before the model runs; other work may have left it otherwise.
    """

    def __init__(self, parts: Parts, tokens_BP: Tensor, input_hook: str, take_turn: Callable[[], None]) -> None:
        self._parts, self._tokens_BP, self._input_hook = parts, tokens_BP, input_hook
        self._take_turn = take_turn
        self._streams_L: list[Tensor] = []
        self._logits_BPV: Tensor | None = None
        self._running: Generator[MlpStop, Floats | None, PassScore] | None = None

    def begin(self, plan: PassPlan) -> MlpStop | PassScore:
        """Begin a pass and run to its first stop, or its end."""
        self._take_turn()
        with torch.inference_mode():
            if self._logits_BPV is None:
                self._run_clean()
        self._running = self._pass(plan)
        return self.go_on(None)

    def go_on(self, output_ND: Floats | None) -> MlpStop | PassScore:
        """Give the output of the MLP where the pass stopped, None where it was only read, and run to the next stop."""
        assert self._running is not None
        self._take_turn()
        with torch.inference_mode():
            # Positions are kept by the parts, and another batch may have had the thread since.
            self._parts.embed(self._tokens_BP)
            try:
                return self._running.send(output_ND)
            except StopIteration as ended:
                self._running = None
                score: PassScore = ended.value
                return score

    def _attended(self, layer: int, x_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stream after a layer's attention, and what its MLP reads."""
        block = self._parts.blocks[layer]
        attn_out_BPD = block.attend(block.ln1(x_BPD), block.mask(x_BPD.shape[1]))
        x_BPD = x_BPD + attn_out_BPD
        return x_BPD, block.ln2(x_BPD)

    def _run_clean(self) -> None:
        x_BPD = self._parts.embed(self._tokens_BP)
        for layer, block in enumerate(self._parts.blocks):
            self._streams_L.append(x_BPD)
            x_BPD, mlp_in_BPD = self._attended(layer, x_BPD)
            x_BPD = x_BPD + block.mlp(mlp_in_BPD)
        self._logits_BPV = self._logits(x_BPD)

    def _logits(self, x_BPD: Tensor) -> Tensor:
        logits_BPV: Tensor = self._parts.unembed(self._parts.final_norm(x_BPD))
        return logits_BPV

    def _pass(self, plan: PassPlan) -> Generator[MlpStop, Floats | None, PassScore]:
        num_layers = len(self._parts.blocks)
        read, replaced, ablated = set(plan.read_layers), set(plan.replaced_layers), set(plan.ablated_layers)
        first = min([*read, *replaced, *ablated], default=num_layers)
        if first == num_layers:
            return self._score(plan, self._clean())
        x_BPD = self._streams_L[first]
        kept_K = torch.tensor(plan.kept_rows, dtype=torch.int64, device=x_BPD.device)
        for layer in range(first, num_layers):
            mlp = self._parts.blocks[layer].mlp
            x_BPD, mlp_in_BPD = self._attended(layer, x_BPD)
            is_changed = layer in replaced or layer in ablated
            wants_norms = layer in read and plan.read_output_norms
            own_BPD = mlp(mlp_in_BPD) if wants_norms or not is_changed else None
            given_ND = None
            if layer in read or layer in replaced:
                found_BPD = mlp_in_BPD if self._input_hook == "mlp_in" else x_BPD
                given_ND = yield MlpStop(
                    layer=layer,
                    input_ND=_rows(found_BPD) if layer in read else None,
                    output_norm_N=_rows(own_BPD.float().norm(dim=-1)) if wants_norms and own_BPD is not None else None,
                    is_replaced=layer in replaced,
                )
            if is_changed:
                flat_ND = mlp_in_BPD.flatten(0, 1)
                new_ND = torch.zeros_like(flat_ND) if given_ND is None else torch.from_numpy(given_ND).to(flat_ND)
                new_ND[kept_K] = mlp(flat_ND[kept_K])
                own_BPD = new_ND.reshape(x_BPD.shape)
            assert own_BPD is not None
            x_BPD = x_BPD + own_BPD
        return self._score(plan, self._logits(x_BPD))

    def _clean(self) -> Tensor:
        assert self._logits_BPV is not None
        return self._logits_BPV

    def _score(self, plan: PassPlan, changed_BPV: Tensor) -> PassScore:
        clean_BPV = self._clean()
        scored_N = torch.ones(self._tokens_BP.numel(), dtype=torch.bool, device=self._tokens_BP.device)
        scored_N[list(plan.kept_rows)] = False
        scored_BP = scored_N.reshape(self._tokens_BP.shape)
        scored_BP[:, -1] = False
        rows_M2 = scored_BP.nonzero()
        model, changed, kl, agreed = 0.0, 0.0, 0.0, 0
        for part_M2 in torch.split(rows_M2, _SCORED_ROWS):
            sequence_M, position_M = part_M2.unbind(1)
            next_M1 = self._tokens_BP[sequence_M, position_M + 1][:, None]
            clean_MV = clean_BPV[sequence_M, position_M].double().log_softmax(-1)
            changed_MV = changed_BPV[sequence_M, position_M].double().log_softmax(-1)
            model -= float(clean_MV.gather(1, next_M1).sum())
            changed -= float(changed_MV.gather(1, next_M1).sum())
            kl += float((clean_MV.exp() * (clean_MV - changed_MV)).sum())
            agreed += int((clean_MV.argmax(1) == changed_MV.argmax(1)).sum())
        return PassScore(rows_M2.shape[0], model, changed, kl, agreed)


def _rows(value: Tensor) -> Floats:
    """Return [B, P, ...] as float32 [N, ...] on the host."""
    return np.asarray(value.flatten(0, 1).float().cpu().numpy())
