"""Reports: made from manifests alone, without torch."""
