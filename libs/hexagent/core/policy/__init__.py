"""Scheduling policies by name, and the placement rules they share."""
