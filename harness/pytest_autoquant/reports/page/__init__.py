"""One self-contained page over every case: ``index.html``, and small pictures for Markdown."""
