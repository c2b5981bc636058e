"""The engine port and the engines behind it."""
