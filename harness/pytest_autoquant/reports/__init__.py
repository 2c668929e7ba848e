"""Markdown, charts and the page of a session. No torch."""
