"""Where the parts of a dataset lie in the bucket; nothing else builds these keys."""

import re

PREFIX = "datasets/"
MANIFEST = "/manifest.json"
MOMENT = "garbage/moment"
"""Written by each collection of garbage, which reads the bucket's time from it."""
_COMMIT = re.compile(r"^datasets/[^/]+/commits/(\d+)\.json$")
_UPLOAD = re.compile(r"^datasets/[^/]+/shards/(\d+)(?:-[0-9a-f]+)?\.weft$")
_SNAPSHOT = re.compile(r"^datasets/[^/]+/snapshots/(\d+)\.json$")


def dataset_prefix(dataset_id: str) -> str:
    """Everything of a dataset starts with this."""
    return f"{PREFIX}{dataset_id}/"


def manifest_key(dataset_id: str) -> str:
    """The document that says what the dataset is and whether it is open, sealed or being deleted."""
    return f"{PREFIX}{dataset_id}{MANIFEST}"


def statistics_key(dataset_id: str) -> str:
    """Statistics of a sealed dataset, over the training split and over everything."""
    return f"{PREFIX}{dataset_id}/statistics.json"


def shards_prefix(dataset_id: str) -> str:
    """Where shards are put."""
    return f"{PREFIX}{dataset_id}/shards/"


def shard_key(dataset_id: str, index: int, upload: str) -> str:
    """Key of one upload of a shard: each upload has its own, so that a late one cannot overwrite what is committed."""
    return f"{shards_prefix(dataset_id)}{index}-{upload}.weft"


def is_shard_key(key: str, dataset_id: str, index: int) -> bool:
    """
    Whether a key may hold the shard of this index.

    >>> is_shard_key("datasets/a/shards/3-0f0f.weft", "a", 3), is_shard_key("datasets/a/shards/31.weft", "a", 3)
    (True, False)
    """
    return re.fullmatch(rf"{re.escape(shards_prefix(dataset_id))}{index}(-[0-9a-f]+)?\.weft", key) is not None


def commits_prefix(dataset_id: str) -> str:
    """Where commit records lie while a dataset is open."""
    return f"{PREFIX}{dataset_id}/commits/"


def commit_key(dataset_id: str, index: int) -> str:
    """The record that makes a shard a part of the dataset; the first to create it wins."""
    return f"{commits_prefix(dataset_id)}{index}.json"


def commit_index(key: str) -> int | None:
    """
    Index of the shard that a commit record is about, or None for another key.

    >>> commit_index("datasets/a/commits/12.json"), commit_index("datasets/a/commits/12-0f.statistics.json")
    (12, None)
    """
    match = _COMMIT.match(key)
    return int(match.group(1)) if match else None


def shard_statistics_key(dataset_id: str, index: int, sha256: str) -> str:
    """Statistics of one committed shard; they are large beside its record and seldom read."""
    return f"{commits_prefix(dataset_id)}{index}-{sha256[:16]}.statistics.json"


def snapshots_prefix(dataset_id: str) -> str:
    """Where snapshots lie; they stay when the dataset is sealed."""
    return f"{PREFIX}{dataset_id}/snapshots/"


def snapshot_key(dataset_id: str, number: int) -> str:
    """The list of shards that a snapshot is; the first to create it wins."""
    return f"{snapshots_prefix(dataset_id)}{number}.json"


def snapshot_number(key: str) -> int | None:
    """
    Number of the snapshot that lies at a key, or None for another key.

    >>> snapshot_number("datasets/a/snapshots/2.json"), snapshot_number("datasets/a/snapshots/2-0f.statistics.json")
    (2, None)
    """
    match = _SNAPSHOT.match(key)
    return int(match.group(1)) if match else None


def snapshot_statistics_key(dataset_id: str, number: int, digest: str) -> str:
    """Statistics over a snapshot's training split; two that take the same number do not write over each other's."""
    return f"{snapshots_prefix(dataset_id)}{number}-{digest}.statistics.json"


def upload_claim_key(key: str) -> str:
    """
    The record of what becomes of an upload, a commit or garbage; the first to create it decides.

    >>> upload_claim_key("datasets/a/shards/3-0f0f.weft")
    'datasets/a/commits/3-0f0f.upload.json'
    """
    folder, _, name = key.rpartition("/")
    return f"{folder.removesuffix('shards')}commits/{name.removesuffix('.weft')}.upload.json"


def upload_index(key: str) -> int | None:
    """
    Index of the shard that an upload is of, or None for another key.

    >>> upload_index("datasets/a/shards/3-0f0f.weft"), upload_index("datasets/a/shards/3.txt")
    (3, None)
    """
    match = _UPLOAD.match(key)
    return int(match.group(1)) if match else None


def holds_prefix(dataset_id: str) -> str:
    """Where holds lie."""
    return f"{PREFIX}{dataset_id}/holds/"


def hold_key(dataset_id: str, hold: str) -> str:
    """One hold; each call that holds has its own."""
    return f"{holds_prefix(dataset_id)}{hold}.json"
