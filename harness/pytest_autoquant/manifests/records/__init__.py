"""Records on disk and their schemas: sensitivity, scheme, session summary, outcome log."""
