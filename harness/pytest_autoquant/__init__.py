"""Measure how sensitive each layer of a vision-language model is to quantization."""

__version__ = "0.1.0"
