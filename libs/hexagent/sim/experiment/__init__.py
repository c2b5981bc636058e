"""Experiments: what is run, how it is judged, and what the paper says."""
