"""``python -m proxystore_integrations`` is ``proxystore``."""

from __future__ import annotations

import sys

from proxystore_integrations.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
