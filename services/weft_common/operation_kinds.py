"""What a service tells an OperationManager about its long work, and what the work is told when it runs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from weft_common.errors import WeftError
from weft_common.logging import get_logger
from weft_common.operation_store import Record

__all__ = ["OperationContext", "OperationKind", "RetryPolicy", "packed_any", "unpack_any"]

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """
    How often and how fast work that failed retryably is tried again.

    Attributes:
        max_failures: Failures in a row after which the error is kept.
        reset_after_s: Work that went on for this long before it failed begins to count anew.
        max_claims: How often work may be taken up by managers that then vanish, before it is given up.
    """

    base_s: float = 0.5
    cap_s: float = 15.0
    max_failures: int = 8
    reset_after_s: float = 60.0
    max_claims: int = 20

    def delay_s(self, failures: int, asked_s: float | None) -> float:
        """Return the wait after so many failures; what the error itself asked for is granted up to a minute."""
        grown = min(self.cap_s, self.base_s * 2.0 ** (failures - 1))
        return max(grown, min(asked_s or 0.0, 60.0))


@dataclass(frozen=True)
class OperationKind:
    """
    A kind of long work.

    Attributes:
        handler: Does the work and returns the response; run again from the start after a failure or a takeover.
        shared: True lets every replica run it at once; it returns when the whole work is done, whoever did it.
        max_running: Most that one manager runs at once; None for no limit.
        given_up: Called with the error that will be kept, before it is written down, where the work failed for good or
            was cancelled, also while nobody did it; called again where it fails itself or its process dies.
    """

    handler: "Callable[[OperationContext], Awaitable[Message]]"
    shared: bool = False
    max_running: int | None = None
    given_up: "Callable[[OperationContext, WeftError], Awaitable[None]] | None" = None

    async def give_up(self, context: "OperationContext", error: WeftError) -> bool:
        """Call `given_up`, where there is one; False where it failed and is to be called again."""
        try:
            if self.given_up is not None:
                await self.given_up(context, error)
        except Exception as raised:
            _LOG.warning("an operation could not be given up yet", operation=context.name, error=str(raised))
            return False
        return True


class OperationContext:
    """
    What a handler knows of the work it does.

    Attributes:
        name: `operations/{service}-{id}`.
        operation_id: The id it was started with.
        request: The message it was started with.
        metadata: The last one reported, by this process or the one before.
    """

    def __init__(
        self,
        name: str,
        operation_id: str,
        record: Record,
        report: Callable[[str, Message], Awaitable[None]],
    ) -> None:
        self.name = name
        self.operation_id = operation_id
        self.request = unpack_any(any_pb2.Any.FromString(record.request))
        self.metadata = unpack_any(any_pb2.Any.FromString(record.metadata))
        self._report = report

    @property
    def resource(self) -> str:
        """The id of the thing being made, which is the operation's own."""
        return self.operation_id

    async def report(self, metadata: Message) -> None:
        """Say how far the work is; cheap enough to be called for every step."""
        self.metadata = metadata
        await self._report(self.name, metadata)


def unpack_any(packed: any_pb2.Any) -> Message:
    """Return the message within; its module must have been imported by somebody."""
    descriptor = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
    message: Message = message_factory.GetMessageClass(descriptor)()
    message.ParseFromString(packed.value)
    return message


def packed_any(message: Message) -> bytes:
    """Return a message as a serialised Any, always the same bytes for the same message."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed.SerializeToString(deterministic=True)
