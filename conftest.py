"""This repository's own wiring; users of the plugin need none of it."""

pytest_plugins = ("pytester",)
