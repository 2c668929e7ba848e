"""Fused experts of a mixture, replayed."""
