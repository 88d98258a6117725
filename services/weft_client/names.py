"""Resource names from what people type."""


def full_name(collection: str, given: str) -> str:
    """
    A resource name from an id or from a name that is whole already.

    >>> full_name("datasets", "pydoc"), full_name("datasets", "datasets/pydoc")
    ('datasets/pydoc', 'datasets/pydoc')
    """
    return given if "/" in given else f"{collection}/{given}"


def feature_name(transcoder: str, layer: int, index: int) -> str:
    """
    Name of a feature.

    >>> feature_name("t", 3, 14)
    'transcoders/t/features/3-14'
    """
    return f"{full_name('transcoders', transcoder)}/features/{layer}-{index}"


def short_id(name: str) -> str:
    """
    The last part of a resource name.

    >>> short_id("runs/r1/checkpoints/20")
    '20'
    """
    return name.rpartition("/")[2]


def operation_service(name: str) -> str:
    """
    The service that keeps an operation: `operations/{service}-{id}`.

    >>> operation_service("operations/trainer-run-r1")
    'trainer'
    """
    return short_id(name).partition("-")[0]
