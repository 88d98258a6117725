"""Resource names from what people type."""


def full_name(collection: str, given: str) -> str:
    """
    A resource name from an id or from a name that is whole already.

    >>> full_name("datasets", "pydoc"), full_name("datasets", "datasets/pydoc")
    ('datasets/pydoc', 'datasets/pydoc')
    """
    return given if "/" in given else f"{collection}/{given}"


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
