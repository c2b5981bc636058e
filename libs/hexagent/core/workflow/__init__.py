"""Workflows: their values, events, growing graph and the tracker that owns the truth about them."""
