"""The embedded run: `weft up`, `weft down` and `weft status` on one machine."""
