"""The guest client."""
