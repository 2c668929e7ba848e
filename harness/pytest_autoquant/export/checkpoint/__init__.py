"""Checkpoints on disk: written with ModelOpt, kept from their source, read back and verified."""
