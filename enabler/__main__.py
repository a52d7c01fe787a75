"""``python -m enabler``."""

import sys

from enabler.cli import main

sys.exit(main())
