"""Which layer groups to quantize: the exact solver and scheme rules."""
