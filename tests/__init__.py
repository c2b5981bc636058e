"""A regular package, so that `tests` always means this folder and never one an installed package brings along."""
