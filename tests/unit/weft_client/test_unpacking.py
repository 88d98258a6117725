"""What operations carry, out of their envelopes."""

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor

from weft.activations.v1 import service_pb2 as activations
from weft.attribution.v1 import service_pb2 as attribution
from weft.cache.v1 import service_pb2 as cache
from weft.training.v1 import service_pb2 as training
from weft_client.unpacking import KINDS


def _messages(file: FileDescriptor) -> set[str]:
    pool = descriptor_pool.Default()
    found = {message.full_name for message in file.message_types_by_name.values()}
    own = [each.name for each in file.dependencies if each.name.startswith("weft/")]
    return found.union(*(_messages(pool.FindFileByName(name)) for name in own))


def test_every_metadata_of_long_work_is_known() -> None:
    """Whatever message of the services ends in Metadata can be unpacked."""
    files = [module.DESCRIPTOR for module in (activations, attribution, cache, training)]
    wanted = {name for file in files for name in _messages(file) if name.endswith("Metadata")}
    assert len(wanted) >= 6
    assert wanted <= set(KINDS)
