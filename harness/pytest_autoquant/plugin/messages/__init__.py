"""What controller and workers tell each other, as JSON."""
