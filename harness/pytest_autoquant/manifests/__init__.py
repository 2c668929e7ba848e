"""Records on disk, and what identifies a measurement."""
