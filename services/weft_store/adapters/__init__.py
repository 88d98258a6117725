"""One file a technology; `weft_store.open_store` chooses."""
