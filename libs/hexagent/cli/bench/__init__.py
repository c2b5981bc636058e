"""`hexagent bench NAME`: measurements of the live system, as rows."""
