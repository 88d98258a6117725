"""
The transform of the codec `klt`: eigenvectors of the covariance of each layer and stream.

An object of its own, named by its hash, that all shards of a harvest share: it is as large as a few thousand tokens. A
matrix is read when it is asked for, and has a digest of its own. The bytes are specified in
`docs/reference/shard-format.md`.
Shapes: S streams, L layers, T tokens, C components, D d_model; C equals D.
"""

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import DataLossError, InvalidArgumentError
from weft_store.port import RangedReads
from weft_store.shard.layout import DIGEST_BYTES, MAX_D_MODEL, MAX_LAYERS, STREAMS, block_digest

__all__ = ["Bases", "Basis", "basis_key", "learn_basis"]

_MAGIC = b"WEFTBASE"
_HEAD = struct.Struct("<8sIII")
_VERSION = 1
MAX_BASIS_BYTES = 1 << 33
LEARNED_TOKENS = 8192
_KEPT = 2


class Basis:
    """
    A change of basis for every layer and stream, as it is written.

    Attributes:
        vectors_SLCD: float16; the rows of a layer and stream are orthonormal but for their rounding.
        sha256: Hex, of the head with the digests of all matrices: its name.
    """

    def __init__(self, vectors_SLCD: NDArray[np.float16]) -> None:
        self.vectors_SLCD = vectors_SLCD
        _, num_layers, d_model, _ = vectors_SLCD.shape
        matrices = vectors_SLCD.astype("<f2").reshape(-1, d_model * d_model)
        digests = b"".join(block_digest(matrix.tobytes()) for matrix in matrices)
        self._head = _HEAD.pack(_MAGIC, _VERSION, num_layers, d_model) + digests
        self.sha256 = hashlib.sha256(self._head).hexdigest()

    def data(self) -> bytes:
        """Write the object."""
        return self._head + self.vectors_SLCD.astype("<f2").tobytes()


def learn_basis(streams: Mapping[str, NDArray[np.float32]], most_tokens: int = LEARNED_TOKENS) -> Basis:
    """
    Take the eigenvectors of the covariance of the first tokens, largest variance first.

    Args:
        streams: `input` and `output`, float32 [L, T, D]; where there is no token, the basis changes nothing.
        most_tokens: How many of T are looked at.

    Raises:
        InvalidArgumentError: Values are not finite.
    """
    num_layers, _, d_model = streams[STREAMS[0]].shape
    vectors = np.empty((len(STREAMS), num_layers, d_model, d_model), np.float16)
    for at, stream in enumerate(STREAMS):
        for layer in range(num_layers):
            values = streams[stream][layer, :most_tokens].astype(np.float64)
            values -= values.sum(axis=0) / max(1, len(values))
            # The largest value becomes 1, so that squares of values of any size stay in range.
            largest = float(np.abs(values).max(initial=0.0))
            if not np.isfinite(largest):
                raise InvalidArgumentError(
                    f"stream {stream!r} of layer {layer} holds values that are not finite: leave those tokens out.",
                    field="streams",
                )
            values /= largest or 1.0
            vectors[at, layer] = np.linalg.eigh(values.T @ values)[1].T[::-1]
    return Basis(vectors)


def basis_key(shard_key: str, sha256: str) -> str:
    """
    Tell where the basis of a shard lies: in the folder `bases` beside the folder of the shard.

    >>> basis_key("datasets/a/shards/3-0f.weft", "ab")
    'datasets/a/bases/ab.weft'
    """
    folder = shard_key.rpartition("/")[0].rpartition("/")[0]
    return f"{folder}/bases/{sha256}.weft" if folder else f"bases/{sha256}.weft"


class Bases:
    """Reads bases and keeps the two that were used last; may be used from many threads."""

    def __init__(self, store: RangedReads) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def get(
        self, key: str, sha256: str, shape: tuple[int, int], stream: int, layers: slice = slice(None)
    ) -> NDArray[np.float16]:
        """
        Give matrices of a stream, [L, C, D], read only; calls for the same ones share their memory.

        Args:
            key: Of the object.
            sha256: Its name, as shards have it.
            shape: L and D of the shard.
            stream: 0 or 1.
            layers: Which of L.

        Raises:
            NotFoundError: There is none.
            DataLossError: It is damaged, or of another model.
        """
        # One thread reads a matrix, the others want the same one.
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _Kept(self._store, key, sha256, *shape)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key].get(stream, layers)


class _Kept:
    """One basis, of which as much is in memory as was asked for."""

    def __init__(self, store: RangedReads, key: str, sha256: str, num_layers: int, d_model: int) -> None:
        self._store, self._key = store, key
        matrices = len(STREAMS) * num_layers
        if not (1 <= num_layers <= MAX_LAYERS and 1 <= d_model <= MAX_D_MODEL):
            self._refuse("no model has such a shape")
        self._head_bytes = _HEAD.size + matrices * DIGEST_BYTES
        self._matrix_bytes = 2 * d_model * d_model
        size = self._head_bytes + matrices * self._matrix_bytes
        if size > MAX_BASIS_BYTES:
            self._refuse(f"it would have {size} bytes, expected at most {MAX_BASIS_BYTES}")
        head = store.get(key, offset=0, length=self._head_bytes)
        if hashlib.sha256(head).hexdigest() != sha256:
            self._refuse("it is not what it was when the shard was written")
        if len(head) != self._head_bytes or _HEAD.unpack_from(head) != (_MAGIC, _VERSION, num_layers, d_model):
            self._refuse("it ends within its header, or that is not of this format, or of another model")
        self._digests = [head[at : at + DIGEST_BYTES] for at in range(_HEAD.size, len(head), DIGEST_BYTES)]
        # Pages that nothing was written to take no memory.
        self._vectors_SLCD = np.empty((len(STREAMS), num_layers, d_model, d_model), "<f2")
        self._there_SL = np.zeros((len(STREAMS), num_layers), bool)

    def get(self, stream: int, layers: slice) -> NDArray[np.float16]:
        """Read what is not there yet."""
        num_layers = self._there_SL.shape[1]
        for layer in range(num_layers)[layers]:
            if not self._there_SL[stream, layer]:
                self._vectors_SLCD[stream, layer] = self._read(stream * num_layers + layer)
                self._there_SL[stream, layer] = True
        found = self._vectors_SLCD[stream, layers]
        found.flags.writeable = False
        return found

    def _read(self, at: int) -> NDArray[np.float16]:
        data = self._store.get(self._key, offset=self._head_bytes + at * self._matrix_bytes, length=self._matrix_bytes)
        if len(data) != self._matrix_bytes or block_digest(data) != self._digests[at]:
            self._refuse(f"its matrix {at} does not have its digest")
        matrix: NDArray[np.float16] = np.frombuffer(data, "<f2").reshape(self._vectors_SLCD.shape[2:])
        if not np.isfinite(matrix).all():
            self._refuse(f"its matrix {at} holds values that are not finite")
        return matrix

    def _refuse(self, why: str) -> NoReturn:
        raise DataLossError(f"basis {self._key!r} cannot be read: {why}. Restore it from a backup or harvest again.")
