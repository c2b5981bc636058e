"""What no schedule can beat, and how near a search comes to it."""
