"""The machine that measures: its memory, threads, libraries and versions."""
