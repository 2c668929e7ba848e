"""A scheme applied, measured, written as a checkpoint and verified."""
