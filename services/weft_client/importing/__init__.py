"""
Activations that others made, as a dataset: folders of safetensors, and the caches of CLT-Forge.

    FIND (files of a known layout) -> READ (some tokens of all layers, float32) -> ENCODE (a shard) -> UPLOAD -> COMMIT

Memory holds one shard. What is not finite, or of another shape, is refused with its file's name. Nothing is unpickled.
"""

from weft_client.importing.run import import_dataset

__all__ = ["import_dataset"]
