"""Gradient replay: captured tensors scored under every configuration."""
