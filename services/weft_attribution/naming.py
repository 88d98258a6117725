"""Names of graphs as they stand in requests."""

from weft_attribution.core.records import check_graph_id
from weft_common.resource_names import parse_name

__all__ = ["graph_id_of"]


def graph_id_of(name: str, field: str = "name") -> str:
    """
    The id within `graphs/{graph}`.

    >>> graph_id_of("graphs/capital")
    'capital'
    """
    return check_graph_id(parse_name(name, "graphs", field=field), field)
