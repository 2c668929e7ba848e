"""What an architecture holds: its tensors from the numbers of its config, its names in vLLM."""
