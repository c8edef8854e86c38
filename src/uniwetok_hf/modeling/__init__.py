"""Models, configurations and processors: flat, because this folder travels to the Hub as remote code."""
