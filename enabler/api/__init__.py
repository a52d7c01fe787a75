"""The REST API: one app for guests, one for the admin."""
