"""The agent: pure parts, the state, and real agents with real receivers."""
