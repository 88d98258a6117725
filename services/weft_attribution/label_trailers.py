"""What an answer tells of labels that it could not read, beside what it holds."""

import grpc.aio

from weft_attribution.core.label_blocks import LabelBlocks

__all__ = ["PASSED_OVER", "tell_passed_over"]

PASSED_OVER = "weft-label-pages-passed-over"
_MOST = 20


def tell_passed_over(context: grpc.aio.ServicerContext[object, object], labels: LabelBlocks) -> None:
    """Name damaged pages of labels in the call's trailer: the first ones, with commas between them."""
    if labels.damaged:
        context.set_trailing_metadata(((PASSED_OVER, ",".join(labels.damaged[:_MOST])),))
