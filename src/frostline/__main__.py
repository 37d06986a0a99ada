"""`python -m frostline`."""

import sys

from frostline.cli.main import main

sys.exit(main())
