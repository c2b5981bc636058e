"""The pure core: standard library and numpy only; no clock, no random draw, no I/O."""
