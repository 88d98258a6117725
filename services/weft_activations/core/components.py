"""
The table of components: every place in a forward pass that has a name, what lies there, and which models have it.

A component of the whole model goes by its name; one of a layer by `layers.{l}.` and its name. Each also answers to its
name in TransformerLens, `blocks.{l}.` and the name in the column of that title.

Dims: P positions, D d_model, H query heads, K key and value heads, E head width, M MLP width, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass

__all__ = [
    "ARCHITECTURES",
    "LAYER_COMPONENTS",
    "MODEL_COMPONENTS",
    "Component",
    "component_at",
    "component_patterns",
    "lens_name",
]


@dataclass(frozen=True)
class Component:
    """
    A named place.

    Attributes:
        name: Without the layer.
        dims: One letter a dim, outermost first.
        lens: Its name in TransformerLens, without the layer; empty where it has none.
    """

    name: str
    dims: str
    lens: str = ""


def _by_name(*components: Component) -> dict[str, Component]:
    return {component.name: component for component in components}


# In the order in which a pass reaches them.
MODEL_COMPONENTS = _by_name(
    Component("tok_embed", "PD", "hook_embed"),
    Component("pos_embed", "PD", "hook_pos_embed"),
    Component("embed", "PD", "hook_embed"),
    Component("resid_final", "PD", "ln_final.hook_in"),
    Component("ln_final.scale", "P", "ln_final.hook_scale"),
    Component("ln_final.normed", "PD", "ln_final.hook_out"),
    Component("logits_uncapped", "PV", "unembed.hook_out"),
    Component("logits", "V"),
    Component("logits_all", "PV", "unembed.hook_out"),
)
LAYER_COMPONENTS = _by_name(
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
_SOME_HAVE = _EMBEDDED_POSITIONS | _ROTATED | _GATED | _POST_NORMS | _BETWEEN | _CAPPED

_EARLIER = (("tok_embed", "embed"), ("logits_uncapped", "logits_all"))
"""Two components of one name in TransformerLens, which is the first one's where a model has both."""

ARCHITECTURES = {
    "GPT2LMHeadModel": _EMBEDDED_POSITIONS | _BETWEEN,
    "LlamaForCausalLM": _ROTATED | _GATED | _BETWEEN,
    "MistralForCausalLM": _ROTATED | _GATED | _BETWEEN,
    "Qwen2ForCausalLM": _ROTATED | _GATED | _BETWEEN,
    "Qwen3ForCausalLM": _ROTATED | _GATED | _BETWEEN,
    "Gemma2ForCausalLM": _ROTATED | _GATED | _POST_NORMS | _BETWEEN | _CAPPED,
    "Gemma3ForCausalLM": _ROTATED | _GATED | _POST_NORMS | _BETWEEN | _CAPPED,
    "GPTNeoXForCausalLM": _ROTATED | _BETWEEN,
}
"""What an architecture has besides the components that all have."""


def component_patterns(architecture: str, *, parallel: bool = False, capped: bool = False) -> tuple[str, ...]:
    """
    List an architecture's components, with `*` for the layer.

    Args:
        architecture: A key of ARCHITECTURES.
        parallel: Attention and MLP read the same stream, so that nothing lies between them.
        capped: Logits go through a soft cap.

    >>> "layers.*.resid_mid" in component_patterns("GPTNeoXForCausalLM", parallel=True)
    False
    """
    left_out = _SOME_HAVE - ARCHITECTURES[architecture]
    if parallel:
        left_out |= _BETWEEN
    if not capped:
        left_out |= _CAPPED
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
    lens = component_at(hook).lens
    if any(hook == later and earlier in components for earlier, later in _EARLIER):
        return ""
    return lens if hook in MODEL_COMPONENTS or not lens else f"blocks.{hook.split('.')[1]}.{lens}"
