"""What can go wrong in the lab.

LabError                 everything below; its message says what is wrong and what to do
├── LabBusy              another process holds the lab of this machine
├── CommandFailed        a program of the host ended badly
├── GuestUnreachable     the guest agent answers on no host in time
│   └── JobLost          the guest knows the command no more (it was rebooted)
├── GuestCommandFailed   a command in the guest ended badly (run(check=True))
├── GuestTimeout         a command in the guest did not end in time
└── MigrationFailed      libvirt did not bring a migration to its end
"""

from __future__ import annotations


class LabError(Exception):
    """Root of the lab's errors."""


class LabBusy(LabError):
    """Another process holds the lab of this machine; only one can be up at a time."""


class CommandFailed(LabError):
    """A program that the lab ran on the host ended with another code than 0."""


class GuestUnreachable(LabError):
    """The guest agent answered on none of the hosts within the time limit."""


class JobLost(GuestUnreachable):
    """The guest does not know the command any more: it was rebooted or reverted meanwhile."""


class GuestCommandFailed(LabError):
    """A command in the guest ended with another code than 0, and the caller asked for 0."""


class GuestTimeout(LabError):
    """A command in the guest did not end within the caller's time limit."""


class MigrationFailed(LabError):
    """libvirt did not complete a migration; the message is libvirt's."""
