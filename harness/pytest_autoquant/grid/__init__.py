"""Cases, and how they are dealt to workers and shards."""
