"""Layouts of transcoders on disk: each read into, and written from, one representation. No torch, no pickle."""
