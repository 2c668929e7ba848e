"""What a case's manifest says of a measurement."""
