"""`python -m cellar_server`."""

import sys

from cellar_server.cli import main

sys.exit(main())
