"""`weft plan`: what a run takes, before it is paid for."""
