"""What to do about what the audit finds, by reason. Data; ``deploy/fleet.md`` says more."""

from __future__ import annotations

_STOLEN = (
    "a new host, or a rotated key: take its `enabler keys export` into --jwks; else somebody has "
    "that host's credentials and not its key: give it new ones (deploy/nats)"
)
_NO_WORD = (
    "find out who has that host's credentials, and give it new ones (deploy/nats); `enabler keys "
    "list` on the host says whether it can sign"
)
_ASTRAY = "find the sender by its connection, in the servers' logs; take its credentials from it"
_DOUBLE = "give each machine its own host_uuid in libvirtd.conf, and its own credentials"
_LOST = "have the servers reached again, or a larger spool: spool_megabytes under [fleet]"
_CLOCK = (
    "keep the hosts' clocks in step (or --tolerance); see that each host publishes (fleet hosts)"
)
_CHAIN = "ask the VM for its history, and verify it: guest-client history FILE --verify --jwks …"
_EDITED = (
    "ask the VM for its history again; if that is the same, somebody edited it, or its domain was "
    "put back or made anew: ask its admin"
)
_OVERTAKEN = "the host that is named says what it can't know: see who controls it, renew its key"

ADVICE = {
    "refused": "nothing, if it is mended; else the host's log and [fleet] credentials there",
    "unknown-key": _STOLEN,
    "wrong-issuer": _NO_WORD,
    "bad-signature": _NO_WORD,
    "wrong-type": _NO_WORD,
    "unsigned": _NO_WORD,
    "malformed": _NO_WORD,
    "wrong-subject": _ASTRAY,
    "not-an-event": _ASTRAY,
    "two-machines": _DOUBLE,
    "events-missing": _LOST,
    "events-lost": _LOST,
    "overlap": _CLOCK,
    "gap": _CLOCK,
    "unknown-before": _CLOCK,
    "not-in-history": _CHAIN,
    "broken-link": _CHAIN,
    "not-told": _CHAIN,
    "not-exported": _EDITED,
    "end-cut-off": _EDITED,
    "bucket-not-told": _OVERTAKEN,
    "bucket-malformed": _OVERTAKEN,
    "bucket-outdated": "wait some minutes: the VM's host tells it again; else who overwrites it?",
}
