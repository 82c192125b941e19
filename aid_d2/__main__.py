"""`python -m aid_d2` is `aid-d2`."""

import sys

from .cli import main

sys.exit(main())
