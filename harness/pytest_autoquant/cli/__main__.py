"""``python -m pytest_autoquant.cli``: the same as ``aq-harness``."""

import sys

from pytest_autoquant.cli import main

sys.exit(main())
