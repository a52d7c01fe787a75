"""``python -m guest_client``, the same as ``guest-client``."""

import sys

from guest_client.cli import main

sys.exit(main())
