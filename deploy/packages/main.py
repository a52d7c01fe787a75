"""Where guest-client.pyz and the packages start. It must be readable to any Python 3."""

import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "guest-client: this is Python %d.%d, and it needs 3.11 or later; name another, as in: "
        "python3.11 %s\n" % (sys.version_info[0], sys.version_info[1], sys.argv[0])
    )
    sys.exit(69)

from guest_client.cli import main

sys.exit(main())
