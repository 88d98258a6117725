"""Every kernel on the device against the reference in float64, over a ragged shape; full-size decode by samples."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from gpu_step import GpuStep
from torch import Tensor

from weft_clt.active import ActiveLayer
from weft_clt.kernels import AdamStep, DecoderPairs, FeatureLists, Kernels, ReferenceKernels

_TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2.0**-7, 1e-3)}
"""Relative and absolute; sums of some hundred terms of size 1."""


def _exact(active: ActiveLayer) -> ActiveLayer:
    """The same entries on the host, in float64."""
    values = {field.name: getattr(active, field.name) for field in fields(ActiveLayer)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = value.cpu().double() if value.is_floating_point() else value.cpu()
    return ActiveLayer(**values)


def check_kernels(
    kernels: Kernels, dtype: torch.dtype, device: torch.device, *, num_tokens: int, num_features: int, d_model: int
) -> dict[str, float]:
    """
    Compare every result of a small step, and return the largest error of each in units of its tolerance.

    Raises:
        AssertionError: A result is off; the message names it.
    """
    num_layers, reference = 3, ReferenceKernels()
    generator = torch.Generator().manual_seed(7)
    errors: dict[str, float] = {}

    def random(*dims: int) -> Tensor:
        return torch.randn(dims, generator=generator).to(dtype)

    def compare(name: str, ours: Tensor, wanted: Tensor, *, absolute: float | None = None) -> None:
        relative, small = _TOLERANCE[dtype]
        allowed = (absolute or small) + relative * wanted.double().abs()
        share = float(((ours.cpu().double() - wanted.double()).abs() / allowed).max()) if wanted.numel() else 0.0
        errors[name] = max(errors.get(name, 0.0), share)
        assert share <= 1, f"{name} in {dtype}: an error of {share:.3g} times what is allowed."

    blocks = [(source, target) for source in range(num_layers) for target in range(source, num_layers)]
    pairs = DecoderPairs.of(num_layers, blocks)
    inputs, w_enc = random(num_layers, num_tokens, d_model), random(num_layers, num_features, d_model) / d_model**0.5
    w_enc, b_enc = w_enc.to(dtype), random(num_layers, num_features)
    bound = torch.full((num_features,), 1.0)
    layers: list[ActiveLayer] = []
    slots = 0
    for layer in range(num_layers):
        exact = inputs[layer].double() @ w_enc[layer].double().T + b_enc[layer].double()
        own = (inputs[layer].to(device), w_enc[layer].to(device), b_enc[layer].to(device))
        top_k = 0 if layer else 5
        preact = torch.empty(num_tokens, num_features, dtype=dtype, device=device)
        counts, feature, value = kernels.encode(*own, bound.to(device) if layer else None, top_k, preact)
        compare("encode", preact, exact)
        token = torch.repeat_interleave(torch.arange(num_tokens), counts.cpu().long())
        compare("encode, listed", value, exact[token, feature.cpu()])
        present = torch.zeros(num_tokens, num_features, dtype=torch.bool)
        present[token, feature.cpu()] = True
        limit = torch.topk(exact, top_k).values[:, -1:].clamp(min=0) if top_k else bound.double()
        wrong = (present != ((exact >= limit) if top_k else (exact > limit))) & ((exact - limit).abs() > 1e-3)
        assert not bool(wrong.any()), f"encode in {dtype} listed {int(wrong.sum())} entries that it should not, or not."
        silent = torch.where(value > 1.5, value, torch.zeros_like(value)) if layer else value
        merged = kernels.merge(counts[None], [feature.int()], [silent], [slots], num_features=num_features, top_k=top_k)
        slots += feature.shape[0]
        host = reference.merge(
            counts[None].cpu(), [feature.int().cpu()], [silent.cpu().double()], [slots - feature.shape[0]],
            num_features=num_features, top_k=top_k,
        )  # fmt: skip
        for field in fields(ActiveLayer):
            mine, theirs = getattr(merged, field.name), getattr(host, field.name)
            same = torch.equal(mine.cpu().double(), theirs.double()) if isinstance(mine, Tensor) else mine == theirs
            assert same, f"merge in {dtype}: {field.name} is not the reference's."
        layers.append(merged)

        grad_preact, grad_w = random(feature.shape[0]), random(num_features, d_model)
        mine, wanted = grad_w.to(device), grad_w.double()
        kernels.encode_backward(counts, feature, grad_preact.to(device), own[0], mine)
        reference.encode_backward(counts.cpu(), feature.cpu(), grad_preact.double(), inputs[layer].double(), wanted)
        compare("encoder gradient", mine, wanted)

    lists, exact_lists = FeatureLists.of(layers), FeatureLists.of([_exact(layer) for layer in layers])
    matrix = (num_layers, num_tokens, d_model)
    targets, grad_out, bias = random(*matrix), random(*matrix), random(num_layers, d_model)
    weight, coeff = random(len(blocks), num_features, d_model), random(num_layers, num_features)

    def passes(by: Kernels, entries: FeatureLists, to: torch.dtype, where: torch.device) -> dict[str, Tensor]:
        w, g = weight.to(where, to), grad_out.to(where, to)
        out = {name: torch.zeros(matrix, dtype=to, device=where) for name in ("decode", "unused")}
        grad_slots = torch.zeros(slots, dtype=torch.promote_types(to, torch.float32), device=where)
        grad_bias, grad = torch.empty(num_layers, d_model, dtype=to, device=where), torch.zeros_like(w)
        by.decode_pass(entries, pairs, w, bias.to(where, to), targets.to(where, to), out["decode"])
        squares = by.value_grad_pass(entries, pairs, w, g, grad_slots, grad_bias)
        by.decoder_gradient(entries, pairs, w, g, coeff.to(where, to), grad)
        norms = torch.zeros(num_features, dtype=grad_slots.dtype, device=where)
        by.add_row_squares(w[0], norms)
        second = torch.zeros(w.shape, dtype=grad_slots.dtype, device=where)
        moved = w.clone()
        step = AdamStep(0.01, 0.0, 0.9, 1e-3, 2, 0.5)
        by.decoder_adam(entries, pairs, moved, g, coeff.to(where, to), None, second, step)
        plain, plain_second = w.clone(), torch.zeros_like(second)
        by.adam(plain, grad, None, plain_second, step)
        return {
            "decode": out["decode"], "value gradients": grad_slots, "bias gradient": grad_bias,
            "decoder gradient": grad, "its norm": torch.tensor([squares]).double().sqrt(), "row squares": norms,
            "sum of squares": torch.tensor([by.sum_squares(w)]).double(), "decoder update": moved,
            "second moment": second, "adam": plain,
        }  # fmt: skip

    ours = passes(kernels, lists, dtype, device)
    wanted_passes = passes(reference, exact_lists, torch.float64, torch.device("cpu"))
    for name, mine in ours.items():
        compare(name, mine, wanted_passes[name], absolute=0.05 if name == "value gradients" else None)
    again = passes(kernels, FeatureLists.of([replace(layer) for layer in layers]), dtype, device)
    for name, mine in ours.items():
        assert torch.equal(mine, again[name]), f"{name} in {dtype} was not the same a second time."
    return errors


def check_decode(step: GpuStep, lists: FeatureLists, *, samples: int = 4) -> float:
    """Decode a few tokens of the last layer again in float64, at full size; returns the largest error."""
    target, worst = step.shape.num_layers - 1, 0.0
    params, targets_LTD = step.trainer.params, step.batch.targets_LOD
    error_LTD = torch.empty_like(targets_LTD)
    pairs = DecoderPairs.of(step.shape.num_layers, step.shape.blocks)
    step.kernels.decode_pass(lists, pairs, params.w_dec_PFC, params.b_dec_LC, targets_LTD, error_LTD)
    for token in torch.linspace(0, step.shape.num_tokens - 1, samples).long().tolist():
        total = params.b_dec_LC[target].double() - targets_LTD[target, token].double()
        for source, its_target, block in pairs.rows():
            if its_target == target:
                layer = lists.layers[source]
                part = slice(int(layer.row_start_T1[token]), int(layer.row_active_T[token]))
                total += layer.value_N[part].double() @ params.w_dec_PFC[block, layer.feature_N[part].long()].double()
        worst = max(worst, float((error_LTD[target, token].double() - total).abs().max() / total.abs().max()))
    assert worst < 2.0**-7, f"Decode at full size is off by {worst:.3g} of its largest value."
    return worst
