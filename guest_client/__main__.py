"""``python -m guest_client``, the same as ``guest-client``."""

import sys

from guest_client.program import main

sys.exit(main())
