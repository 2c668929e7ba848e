"""Calibration captions and the batches they are measured in."""
