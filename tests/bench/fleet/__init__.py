"""A fleet on paper: 10,000 hosts and 300,000 VMs, simulated. ``python -m tests.bench.fleet``."""
