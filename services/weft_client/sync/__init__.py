# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""The synchronous client."""
