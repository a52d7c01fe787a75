"""Every error the enabler raises on purpose, in one tree.

    EnablerError
    ├── ConfigurationError      exit 78   a setting is wrong, or missing
    ├── IdentityError           exit 78   this machine has no identity that can be trusted
    ├── ListenError             exit 69   an address or a socket path can't be listened on
    ├── ServiceUnavailable      exit 69   the running service can't be asked by a command
    ├── EnrolmentError          exit 69   a VM can't be given a token, or be rid of it
    ├── FleetError              exit 69   the fleet's servers can't be asked, or don't have it
    │   ├── FleetRefused        exit 77   they refuse us
    │   ├── FleetUnknown        exit 1    nothing is known there of what is asked for
    │   └── SpoolError          exit 69   the spool can't be used
    ├── SigningUnavailable      exit 78   there is no key to sign with   503 signing-unavailable
    ├── HypervisorError         exit 69   libvirt can't be asked         503 hypervisor-unavailable
    │   └── HypervisorDenied    exit 77   libvirt refuses us
    └── Refusal                           a request that gets no identity
        ├── CallerUnknown                 403 caller-unknown
        ├── TokenNeeded                   401 token-needed
        ├── TokenRefused                  401 token-refused
        ├── ForwardedRequest              403 forwarded-request
        ├── MalformedHost                 400 malformed-host
        ├── MisdirectedRequest            421 misdirected-request
        ├── TooManyRequests               429 too-many-requests
        ├── TooManyConnections            503 too-many-connections
        ├── VmNotFound                    404 vm-not-found
        ├── MalformedUuid                 400 malformed-uuid
        ├── MalformedRequest              400 bad-request
        ├── ContentTooLarge               413 content-too-large
        ├── TooManyWaits                  429 too-many-waits
        ├── TooManyStreams                429 too-many-streams
        ├── VmArriving                    503 vm-arriving
        └── VmLeaving                     503 vm-leaving

Each says in its message what is wrong and what to do about it. An error that ends a command carries
the exit code of ``sysexits.h``; one that ends a request carries the HTTP status and the last part
of its problem type (RFC 9457).
"""

from __future__ import annotations

import math


class EnablerError(Exception):
    """The root. ``str(error)`` is one line that a person can act on."""

    exit_code = 70  # EX_SOFTWARE
    status = 500
    problem = "internal-error"
    title = "The enabler failed"
    retry_after: int | None = None
    """Seconds after which asking again is worth it (``Retry-After``), where that is known."""
    challenge: str | None = None
    """What a 401 asks for (``WWW-Authenticate``, RFC 6750)."""
    reason: str | None = None
    """What the log is told of a refusal, where the caller must not be."""


class ConfigurationError(EnablerError):
    """A setting is wrong or missing."""

    exit_code = 78  # EX_CONFIG


class IdentityError(EnablerError):
    """The machine has no identity that can be trusted (DESIGN rule 2)."""

    exit_code = 78  # EX_CONFIG


class ListenError(EnablerError):
    """An address or socket path can't be listened on."""

    exit_code = 69  # EX_UNAVAILABLE


class ServiceUnavailable(EnablerError):
    """The running service can't be asked over its admin socket, or says that it can't answer."""

    exit_code = 69  # EX_UNAVAILABLE


class NoSuchVm(EnablerError):
    """A command names a VM that libvirt does not know here."""

    exit_code = 69  # EX_UNAVAILABLE


class EnrolmentError(EnablerError):
    """A VM can't be given a token, or be rid of it."""

    exit_code = 69  # EX_UNAVAILABLE


class AttachError(EnablerError):
    """A VM can't be given a device, or be rid of it; or the host-only network can't be made."""

    exit_code = 69  # EX_UNAVAILABLE


class HypervisorError(EnablerError):
    """Libvirt can't be asked, did not answer in time, or its last word is too old to repeat."""

    exit_code = 69  # EX_UNAVAILABLE
    status = 503
    problem = "hypervisor-unavailable"
    title = "The hypervisor can't be asked"
    retry_after = 1


class HypervisorDenied(HypervisorError):
    """Libvirt answers, but refuses this user."""

    exit_code = 77  # EX_NOPERM


class FleetError(EnablerError):
    """The fleet's servers can't be asked, or are not set up."""

    exit_code = 69  # EX_UNAVAILABLE


class FleetSilent(FleetError):
    """The servers gave no answer in time: they may be choosing a leader. Asking again may do."""


class FleetRefused(FleetError):
    """The servers answer, but refuse these credentials, or what is asked with them."""

    exit_code = 77  # EX_NOPERM


class FleetUnknown(FleetError):
    """The fleet has never heard of what is asked for."""

    exit_code = 1


class SpoolError(FleetError):
    """The spool can't be used."""


class SigningUnavailable(EnablerError):
    """There is no signing key that can be used: nothing can be attested."""

    exit_code = 78  # EX_CONFIG
    status = 503
    problem = "signing-unavailable"
    title = "The host has no signing key"
    retry_after = 5


class Refusal(EnablerError):
    """A request that gets no identity."""


class CallerUnknown(Refusal):
    """The caller is no VM that is known to live here."""

    status = 403
    problem = "caller-unknown"
    title = "The caller is not a virtual machine of this host"


class TokenNeeded(Refusal):
    """The caller shows no token, and there is no other way to know it."""

    status = 401
    problem = "token-needed"
    title = "A token is needed"
    challenge = 'Bearer realm="vm-enabler"'


class TokenRefused(Refusal):
    """The caller shows a token that is not its own, or nobody's."""

    status = 401
    problem = "token-refused"
    title = "The token is refused"
    challenge = 'Bearer realm="vm-enabler", error="invalid_token"'


class ForwardedRequest(Refusal):
    """The request went through a proxy, so its channel says nothing of who is asking."""

    status = 403
    problem = "forwarded-request"
    title = "Forwarded requests are refused"


class MalformedHost(Refusal):
    """The request has no ``Host``, or more than one (RFC 9112, 3.2)."""

    status = 400
    problem = "malformed-host"
    title = "A request has one Host"


class MisdirectedRequest(Refusal):
    """The request is meant for another host (RFC 9110, 7.4)."""

    status = 421
    problem = "misdirected-request"
    title = "This is another host"


class TooManyRequests(Refusal):
    """The caller asks more often than it may. ``seconds`` from now it may again."""

    status = 429
    problem = "too-many-requests"
    title = "Too many requests"
    retry_after = 1

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(
            f"this caller asks more often than it may; ask again in {self.retry_after} s, "
            "or wait for a change with 'Prefer: wait=N'"
        )


class TooManyConnections(Refusal):
    """The caller, or all together, hold as many connections as may be."""

    status = 503
    problem = "too-many-connections"
    title = "Too many connections"
    retry_after = 5


class VmNotFound(Refusal):
    """No such VM, as far as this caller may know."""

    status = 404
    problem = "vm-not-found"
    title = "No such virtual machine"


class MalformedUuid(Refusal):
    """What should be a UUID is none."""

    status = 400
    problem = "malformed-uuid"
    title = "Not a UUID"


class ContentTooLarge(Refusal):
    """The request's body is longer than any that the contract allows."""

    status = 413
    problem = "content-too-large"
    title = "The request is too large"


class MalformedRequest(Refusal):
    """The request's body is not what the contract says."""

    status = 400
    problem = "bad-request"
    title = "Bad request"


class TooManyWaits(Refusal):
    """As many requests wait for a change as may."""

    status = 429
    problem = "too-many-waits"
    title = "Too many requests wait"
    retry_after = 5


class TooManyStreams(Refusal):
    """As many streams of events are open as may be."""

    status = 429
    problem = "too-many-streams"
    title = "Too many streams of events"
    retry_after = 5


class VmArriving(Refusal):
    """The VM is on its way here and does not run here yet."""

    status = 503
    problem = "vm-arriving"
    title = "The virtual machine is arriving"
    retry_after = 1


class VmLeaving(Refusal):
    """The VM has been switched over to another host."""

    status = 503
    problem = "vm-leaving"
    title = "The virtual machine is leaving"
    retry_after = 1
