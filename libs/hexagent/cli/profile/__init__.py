"""The command `hexagent profile`."""
