"""The token that the enabler knows this VM by (``enabler enroll`` on the host), in its file.

It is read for each request, so that a new one is used from the moment it is there. Whoever reads it
can ask as this VM: a file that others may read, or write, is refused, as ssh does with its keys.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from guest_client.errors import TokenUnusable

DEFAULT_TOKEN_FILE = Path("/etc/guest-client/token")
"""Where ``enabler enroll`` puts it."""

_LONGEST = 4096


@dataclass(frozen=True)
class TokenFile:
    """Where the token is. One that is not ``required`` may be missing, or be for root alone."""

    path: Path
    required: bool = True

    def read(self) -> str | None:
        """Give the token; None if there is none and need not be. Raises :class:`TokenUnusable`."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            if not self.required:
                return None
            raise TokenUnusable(
                f"there is no token file {self.path}; have the host's admin run `enabler enroll`,"
                " or mend token_file"
            ) from error
        except OSError as error:
            if not self.required and isinstance(error, PermissionError):
                return None  # we are not root: perhaps the enabler knows this VM without
            raise TokenUnusable(
                f"can't read the token file {self.path}: {error.strerror}; run as its owner"
            ) from error
        try:
            self._check(os.fstat(fd))
            return self._token(os.read(fd, _LONGEST + 1))
        finally:
            os.close(fd)

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise TokenUnusable(f"the token file {self.path} is no file; mend token_file")
        if found.st_uid not in (0, os.geteuid()):
            raise TokenUnusable(
                f"the token file {self.path} belongs to user {found.st_uid}, who could replace it;"
                f" `chown root {self.path}`"
            )
        if found.st_mode & 0o077:
            raise TokenUnusable(
                f"others than its owner may use the token file {self.path} (mode"
                f" {stat.S_IMODE(found.st_mode):04o}); `chmod 600 {self.path}`, and have the host's"
                " admin make a new token (`enabler enroll`) if somebody may have read it"
            )

    def _token(self, content: bytes) -> str:
        token = content.strip()
        if not token or len(content) > _LONGEST or not all(0x21 <= byte < 0x7F for byte in token):
            raise TokenUnusable(
                f"the token file {self.path} should have one line, the token as `enabler enroll`"
                " prints it"
            )
        return token.decode("ascii")
