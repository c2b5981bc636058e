"""HexAGenT: a control plane that serves agent workflows on mixed GPU fleets."""

__version__ = "0.1.0"
