"""The reports of a session or a folder."""
