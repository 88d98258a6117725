"""The asyncio client; `weft_client.sync` is made from these files by `scripts/client_sync.py`."""
