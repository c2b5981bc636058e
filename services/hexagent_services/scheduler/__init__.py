"""scheduler: decides which call runs when and where, by events, and tells the agents."""
