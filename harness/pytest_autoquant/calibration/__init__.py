"""Calibration captions and batches."""
