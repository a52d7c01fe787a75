"""Where guest-client.pyz and the packages start. It must be readable to any Python 3."""

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "guest-client: this is Python {}.{}, and it needs 3.9 or later; "
        "name another, as in: python3.9 {}\n".format(*sys.version_info[:2], sys.argv[0])
    )
    sys.exit(69)

from guest_client.program import main

sys.exit(main())
