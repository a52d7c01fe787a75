"""The tests: unit, api, and lab (real hosts, a real guest, real live migrations)."""
