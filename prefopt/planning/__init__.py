"""Plans a run before it starts: steps, tokens, memory, time, and warnings."""
