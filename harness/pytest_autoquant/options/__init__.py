"""Every option and ini value, once."""
