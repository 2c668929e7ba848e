"""The worker's part of the plugin: select, skip, measure, attach outcomes to test reports."""
