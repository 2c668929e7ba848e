"""Which layer groups to quantize: scored groups, the exact solver and schemes."""
