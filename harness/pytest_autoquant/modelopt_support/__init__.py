"""What ModelOpt can do here, and the only place that knows its private names."""
