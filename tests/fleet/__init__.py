"""The fleet: a real NATS cluster, from the files of deploy/nats."""
