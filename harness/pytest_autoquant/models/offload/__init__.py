"""Models whose weights stay elsewhere than on the device that computes."""
