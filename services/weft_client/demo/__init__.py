"""`weft demo`: from text to three checked attribution graphs, through the public client only."""
