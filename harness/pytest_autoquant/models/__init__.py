"""Load, inspect and restore models."""
