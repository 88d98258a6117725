"""
The table of components: every place in a forward pass that has a name, what lies there, and which models have it.

A component of the whole model goes by its name; one of a layer by `layers.{l}.` and its name. Each also answers to its
name in TransformerLens, `blocks.{l}.` and the name in the column of that title. In an encoder of BERT's kind a norm
stands behind each sum: `resid_mid` and `resid_post` are the sums, `ln1.normed` and `ln2.normed` what goes on.

A model of speech has two stacks: `encoder.embed`, `encoder.layers.{l}.` and `decoder.layers.{l}.` with the names of a
layer, and what joins them, `decoder.layers.{l}.cross.pattern`. TransformerLens has no names for these.

Dims: P positions, D d_model, H query heads, K key and value heads, E head width, M MLP width, V vocabulary; F frames of
an encoder of speech, S steps of the spectrogram, N its mel bins.
"""

import re
from collections.abc import Collection

from weft_activations.core.component import Component, by_name

__all__ = [
    "ARCHITECTURES",
    "ENCODERS",
    "LAYER_COMPONENTS",
    "MODEL_COMPONENTS",
    "SPEECH",
    "component_at",
    "component_patterns",
    "lens_name",
]


# In the order in which a pass of a decoder reaches them.
MODEL_COMPONENTS = by_name(
    Component("tok_embed", "PD", "hook_embed"),
    Component("pos_embed", "PD", "hook_pos_embed"),
    Component("type_embed", "PD", "token_type_embed.hook_out"),
    Component("ln_embed.scale", "P", "embed_ln.hook_scale"),
    Component("embed", "PD", "hook_embed"),
    Component("resid_final", "PD", "ln_final.hook_in"),
    Component("pooled", "D"),
    Component("mlm.pre", "PD", "mlm_head.hook_out"),
    Component("mlm.post", "PD", "ln_final.hook_in"),
    Component("ln_final.scale", "P", "ln_final.hook_scale"),
    Component("ln_final.normed", "PD", "ln_final.hook_out"),
    Component("logits_uncapped", "PV", "unembed.hook_out"),
    Component("logits", "V"),
    Component("logits_all", "PV", "unembed.hook_out"),
)
LAYER_COMPONENTS = by_name(
    Component("resid_pre", "PD", "hook_resid_pre"),
    Component("ln1.scale", "P", "ln1.hook_scale"),
    Component("ln1.normed", "PD", "ln1.hook_out"),
    Component("attn.q", "HPE", "attn.hook_q"),
    Component("attn.k", "KPE", "attn.hook_k"),
    Component("attn.v", "KPE", "attn.hook_v"),
    Component("attn.q_rot", "HPE", "attn.hook_rot_q"),
    Component("attn.k_rot", "KPE", "attn.hook_rot_k"),
    Component("attn.scores", "HPP", "attn.hook_attn_scores"),
    Component("attn.pattern", "HPP", "attn.hook_pattern"),
    Component("attn.z", "HPE", "attn.hook_z"),
    Component("attn.result", "HPD", "attn.hook_result"),
    Component("ln1_post.scale", "P", "ln1_post.hook_scale"),
    Component("attn_out", "PD", "hook_attn_out"),
    Component("resid_mid", "PD", "hook_resid_mid"),
    Component("ln2.scale", "P", "ln2.hook_scale"),
    Component("ln2.normed", "PD", "ln2.hook_out"),
    Component("mlp_in", "PD", "mlp.hook_in"),
    Component("mlp.pre", "PM", "mlp.hook_pre"),
    Component("mlp.pre_linear", "PM", "mlp.hook_pre_linear"),
    Component("mlp.post", "PM", "mlp.hook_post"),
    Component("ln2_post.scale", "P", "ln2_post.hook_scale"),
    Component("mlp_out", "PD", "hook_mlp_out"),
    Component("resid_post", "PD", "hook_resid_post"),
)

_EMBEDDED_POSITIONS = frozenset({"tok_embed", "pos_embed"})
_ROTATED = frozenset({"attn.q_rot", "attn.k_rot"})
_GATED = frozenset({"mlp.pre_linear"})
_POST_NORMS = frozenset({"ln1_post.scale", "ln2_post.scale"})
_BETWEEN = frozenset({"resid_mid"})
_CAPPED = frozenset({"logits_uncapped"})
_POST_NORMED = frozenset({"tok_embed", "pos_embed", "type_embed", "ln_embed.scale", "resid_mid"})
_POOLED = frozenset({"pooled"})
_LOGITS = frozenset({"logits", "logits_all", "ln_final.scale", "ln_final.normed"})
_MASKED = _LOGITS | {"mlm.pre", "mlm.post"}
_SOME_HAVE = (
    _EMBEDDED_POSITIONS | _ROTATED | _GATED | _POST_NORMS | _BETWEEN | _CAPPED | _POST_NORMED | _POOLED | _MASKED
)
_DECODER = _BETWEEN | _LOGITS

ARCHITECTURES = {
    "GPT2LMHeadModel": _DECODER | _EMBEDDED_POSITIONS,
    "LlamaForCausalLM": _DECODER | _ROTATED | _GATED,
    "MistralForCausalLM": _DECODER | _ROTATED | _GATED,
    "Qwen2ForCausalLM": _DECODER | _ROTATED | _GATED,
    "Qwen3ForCausalLM": _DECODER | _ROTATED | _GATED,
    "Gemma2ForCausalLM": _DECODER | _ROTATED | _GATED | _POST_NORMS | _CAPPED,
    "Gemma3ForCausalLM": _DECODER | _ROTATED | _GATED | _POST_NORMS | _CAPPED,
    "GPTNeoXForCausalLM": _DECODER | _ROTATED,
    "BertModel": _POST_NORMED | _POOLED,
    "BertForMaskedLM": _POST_NORMED | _MASKED,
    "RobertaModel": _POST_NORMED | _POOLED,
    "RobertaForMaskedLM": _POST_NORMED | _MASKED,
}
"""What an architecture has besides the components that all have."""

ENCODERS = frozenset({"BertModel", "BertForMaskedLM", "RobertaModel", "RobertaForMaskedLM"})
"""Those that read a text in both directions, with a norm behind each sum."""

SPEECH = frozenset({"WhisperForConditionalGeneration"})
"""Those that read a spectrogram with one stack and tokens with another."""
_LAYER_OF_STACK = re.compile(r"^(encoder|decoder)\.layers\.(?:\*|[0-9]+)\.")
_NOT_IN_SPEECH = _ROTATED | _GATED | _POST_NORMS
_ENCODER = by_name(
    Component("encoder.features", "SN"),
    Component("encoder.embed", "FD"),
    *(
        Component(f"encoder.layers.{name}", component.dims.replace("P", "F"))
        for name, component in LAYER_COMPONENTS.items()
        if name not in _NOT_IN_SPEECH
    ),
    Component("encoder.resid_final", "FD"),
    Component("encoder.ln_final.scale", "F"),
    Component("encoder.ln_final.normed", "FD"),
)
_CROSS = by_name(
    Component("ln_cross.scale", "P"),
    Component("ln_cross.normed", "PD"),
    Component("cross.q", "HPE"),
    Component("cross.k", "KFE"),
    Component("cross.v", "KFE"),
    Component("cross.scores", "HPF"),
    Component("cross.pattern", "HPF"),
    Component("cross.z", "HPE"),
    Component("cross.result", "HPD"),
    Component("cross_out", "PD"),
    Component("resid_cross", "PD"),
)
_OF_DECODER_LAYER = {name: each for name, each in LAYER_COMPONENTS.items() if name not in _NOT_IN_SPEECH} | _CROSS
_DECODER_STACK = by_name(
    Component("decoder.tok_embed", "PD"),
    Component("decoder.pos_embed", "PD"),
    Component("decoder.embed", "PD"),
    *(Component(f"decoder.layers.{name}", component.dims) for name, component in _OF_DECODER_LAYER.items()),
    Component("decoder.resid_final", "PD"),
    Component("decoder.ln_final.scale", "P"),
    Component("decoder.ln_final.normed", "PD"),
)
_STACKS = _ENCODER | _DECODER_STACK

_EARLIER = (("tok_embed", "embed"), ("logits_uncapped", "logits_all"))
"""Two components of one name in TransformerLens, which is the first one's where a model has both."""
_POST_NORMED_LENS = {
    "tok_embed": "embed.hook_out",
    "embed": "hook_embed",
    "resid_mid": "ln1.hook_in",
    "resid_post": "ln2.hook_in",
    "attn_out": "attn.o.hook_out",
    "resid_final": "",
}
"""Where TransformerLens's names are others, or mean other places, in an encoder with a norm behind each sum."""


def component_patterns(
    architecture: str, *, parallel: bool = False, capped: bool = False, pooled: bool = True
) -> tuple[str, ...]:
    """
    List an architecture's components, with `*` for the layer.

    Args:
        architecture: A key of ARCHITECTURES, or one of SPEECH.
        parallel: Attention and MLP read the same stream, so that nothing lies between them.
        capped: Logits go through a soft cap.
        pooled: The weights have a pooler.

    >>> "layers.*.resid_mid" in component_patterns("GPTNeoXForCausalLM", parallel=True)
    False
    """
    if architecture in SPEECH:
        stacks = [name.replace(".layers.", ".layers.*.") for name in _STACKS]
        return (*stacks, "logits", "logits_all")
    left_out = _SOME_HAVE - ARCHITECTURES[architecture]
    if parallel:
        left_out |= _BETWEEN
    if not capped:
        left_out |= _CAPPED
    if not pooled:
        left_out |= _POOLED
    return (
        *(name for name in MODEL_COMPONENTS if name not in left_out),
        *(f"layers.*.{name}" for name in LAYER_COMPONENTS if name not in left_out),
    )


def component_at(hook: str) -> Component:
    """
    Return the component that a name of its own, or a pattern, stands for.

    >>> component_at("layers.3.attn.pattern").dims
    'HPP'
    """
    if hook in MODEL_COMPONENTS:
        return MODEL_COMPONENTS[hook]
    if hook.startswith(("encoder.", "decoder.")):
        return _STACKS[_LAYER_OF_STACK.sub(r"\1.layers.", hook)]
    return LAYER_COMPONENTS[hook.split(".", 2)[2]]


def lens_name(hook: str, components: Collection[str] = ()) -> str:
    """
    Return a component's name in TransformerLens, empty where it has none.

    Args:
        hook: A name of its own, or a pattern.
        components: What the model has; of two components with one name, the earlier has it.

    >>> lens_name("layers.3.attn.pattern")
    'blocks.3.attn.hook_pattern'
    """
    component = component_at(hook)
    if component.name in _STACKS:
        return ""
    if "ln_embed.scale" in components:
        lens = _POST_NORMED_LENS.get(component.name, component.lens)
    elif any(hook == later and earlier in components for earlier, later in _EARLIER):
        return ""
    else:
        lens = component.lens
    return lens if hook in MODEL_COMPONENTS or not lens else f"blocks.{hook.split('.')[1]}.{lens}"
