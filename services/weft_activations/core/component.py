"""What a component is."""

from dataclasses import dataclass

__all__ = ["Component", "by_name", "position_dim"]


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


def by_name(*components: Component) -> dict[str, Component]:
    """Put components under their names."""
    return {component.name: component for component in components}


def position_dim(component: Component) -> int:
    """
    Return which dim an intervention's positions count: tokens, frames or steps of the spectrogram, the first of them.

    >>> position_dim(Component("attn.pattern", "HPP"))
    1
    """
    return next(index for index, dim in enumerate(component.dims) if dim in "PFS")
