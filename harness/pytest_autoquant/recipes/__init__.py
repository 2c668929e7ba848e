"""Decisions of schemes and manifests in the forms that other tools read. Needs no torch."""
