"""The truth about workflows: takes their commands, writes their events, shows them to their watchers."""
