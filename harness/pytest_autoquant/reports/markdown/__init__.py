"""Reports as Markdown: a case, a session, schemes, a comparison."""
