"""Shards: what a sample is, and how samples are written, stored, indexed, read and verified."""
