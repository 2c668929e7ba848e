"""Charts: Vega-Lite specifications, the data they draw, and static SVG."""
