"""The fleet: what happens on every host, on NATS JetStream, and what can be told from it.

Nothing of this is loaded without ``--fleet``, and nats-py only where a server is spoken to
(`enabler.fleet.bus`). The extra ``fleet`` brings it.
"""
