"""Stand-ins for what cannot run here."""
