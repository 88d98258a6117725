"""
A corpus in the bucket: documents named by their content, and a manifest that is written last.

    corpora/{id}/manifest.json
    corpora/{id}/documents/{n}-{sha256, 16 digits}.txt      of an upload
    corpora/{id}/parts/{run}-{n}.strings.zst             of an import, see `corpus_parts`

Because a document's key holds its hash, and a part's key its run, two of one name never mix; the manifest decides
which one won.
"""

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from weft_activations.core.corpus_origin import CorpusOrigin
from weft_activations.core.corpus_parts import CorpusPart, read_part
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from weft_store.documents import create_json, list_ids, read_json
from weft_store.port import ObjectStore

__all__ = ["Corpus", "CorpusUpload", "corpus_ids", "manifest_key", "read_corpus", "read_documents", "store_corpus"]

_MAX_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """
    What a manifest says.

    Attributes:
        digest: Hex SHA-256 over the texts, and where they were uploaded over their names, in order.
        documents: Key and hex SHA-256 of each document, in order; empty where they are in parts.
        parts: Objects of many documents each, in order.
        origin: The files that it was made of; None where its documents were uploaded.
    """

    corpus_id: str
    size_bytes: int
    digest: str
    num_documents: int
    documents: Sequence[tuple[str, str]]
    parts: Sequence[CorpusPart] = ()
    origin: CorpusOrigin | None = None


class CorpusUpload:
    """
    Takes a corpus in pieces and checks each as it comes.

    Args:
        max_bytes: Most bytes of text in all.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._texts: dict[str, bytearray] = {}
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def add(self, document: str, piece: bytes) -> None:
        """
        Add a piece to the document of that name.

        Raises:
            InvalidArgumentError: No name, too large a piece, or bytes that are not UTF-8; says where.
            ResourceExhaustedError: The corpus grows beyond its bound.
        """
        if not document:
            raise InvalidArgumentError("a piece came without the name of its document; name it", field="document")
        if len(piece) > _MAX_PIECE_BYTES:
            raise InvalidArgumentError(
                f"a piece of {document!r} has {len(piece)} bytes; send pieces of {_MAX_PIECE_BYTES} at most",
                field="text",
            )
        self._size_bytes += len(piece)
        if self._size_bytes > self._max_bytes:
            raise ResourceExhaustedError(
                f"the corpus is larger than the {self._max_bytes} bytes that this service takes; split it into several "
                "or raise WEFT_ACTIVATIONS_MAX_CORPUS_BYTES"
            )
        text = self._texts.setdefault(document, bytearray())
        decoder = self._decoders.setdefault(document, codecs.getincrementaldecoder("utf-8")())
        self._decode(document, decoder, len(text), piece, final=False)
        text += piece

    def finish(self) -> Mapping[str, bytes]:
        """
        End the upload.

        Returns:
            The documents by name, in the order in which they first came.

        Raises:
            InvalidArgumentError: No text at all, or a document that ends inside a character.
        """
        for document, decoder in self._decoders.items():
            self._decode(document, decoder, len(self._texts[document]), b"", final=True)
        if not self._size_bytes:
            raise InvalidArgumentError("the corpus has no text; send at least one document that is not empty")
        return {document: bytes(text) for document, text in self._texts.items()}

    def _decode(
        self, document: str, decoder: codecs.IncrementalDecoder, offset: int, piece: bytes, *, final: bool
    ) -> None:
        waiting = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=final)
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(
                f"document {document!r} is not UTF-8: {error.reason} at byte {offset - waiting + error.start}; "
                "convert it to UTF-8 and send the corpus again",
                field="text",
            ) from None


def store_corpus(store: ObjectStore, corpus_id: str, documents: Mapping[str, bytes]) -> Corpus:
    """
    Write a corpus; the same documents under the same name again are success.

    Raises:
        AlreadyExistsError: Other documents have that name.
    """
    digest = hashlib.sha256()
    entries = []
    for index, (name, text) in enumerate(documents.items()):
        encoded_name = name.encode()
        digest.update(b"%d %d\n" % (len(encoded_name), len(text)) + encoded_name + text)
        sha256 = hashlib.sha256(text).hexdigest()
        key = f"corpora/{corpus_id}/documents/{index:06d}-{sha256[:16]}.txt"
        entries.append({"key": key, "name": name, "sha256": sha256, "size_bytes": len(text)})
    manifest = {
        "corpus": f"corpora/{corpus_id}",
        "digest": digest.hexdigest(),
        "documents": entries,
        "size_bytes": sum(map(len, documents.values())),
    }
    try:
        found = read_corpus(store, corpus_id)
    except NotFoundError:
        for entry, text in zip(entries, documents.values(), strict=True):
            store.put(str(entry["key"]), text)
        with suppress(AlreadyExistsError):
            # Where another upload was faster, whose documents it holds is looked at below.
            create_json(store, manifest_key(corpus_id), manifest)
        found = read_corpus(store, corpus_id)
    if found.digest != manifest["digest"]:
        raise AlreadyExistsError(
            f"corpora/{corpus_id} is there with other documents (digest {found.digest[:16]}, these have "
            f"{digest.hexdigest()[:16]}); choose another id",
            field="corpus_id",
        )
    return found


def manifest_key(corpus_id: str) -> str:
    """Return where a corpus's manifest lies."""
    return f"corpora/{corpus_id}/manifest.json"


def corpus_ids(store: ObjectStore) -> list[str]:
    """List all corpora."""
    return list(list_ids(store, "corpora/", "/manifest.json"))


def read_corpus(store: ObjectStore, corpus_id: str) -> Corpus:
    """
    Read a manifest.

    Raises:
        NotFoundError: There is no such corpus, or its upload was never finished.
    """
    try:
        manifest, _ = read_json(store, manifest_key(corpus_id))
    except NotFoundError:
        raise NotFoundError(
            f"there is no corpus corpora/{corpus_id} in the bucket; make it with UploadCorpus or ImportCorpus first",
            field="corpus",
        ) from None
    documents = [(str(entry["key"]), str(entry["sha256"])) for entry in manifest["documents"]]
    origin = manifest.get("origin")
    return Corpus(
        corpus_id=corpus_id,
        size_bytes=int(manifest["size_bytes"]),
        digest=str(manifest["digest"]),
        num_documents=int(manifest.get("num_documents", len(documents))),
        documents=documents,
        parts=[CorpusPart(**part) for part in manifest.get("parts", ())],
        origin=None if origin is None else CorpusOrigin.from_json(origin),
    )


def read_documents(store: ObjectStore, corpus: Corpus) -> Iterator[str]:
    """
    Read the documents in order.

    Raises:
        DataLossError: A document is gone or is not what the manifest says.
    """
    for key, sha256 in corpus.documents:
        try:
            text = store.get(key)
        except NotFoundError:
            raise DataLossError(
                f"object {key!r} of corpora/{corpus.corpus_id} is gone; upload the corpus anew"
            ) from None
        if hashlib.sha256(text).hexdigest() != sha256:
            raise DataLossError(f"object {key!r} does not have the SHA-256 of its manifest; upload the corpus anew")
        yield text.decode("utf-8")
    for part in corpus.parts:
        yield from read_part(store, part)
