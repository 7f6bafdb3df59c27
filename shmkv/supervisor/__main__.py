"""`python -m shmkv.supervisor NAME`: the same as `shmkv-supervisor NAME`."""

import sys

from shmkv.supervisor.cli import main

sys.exit(main())
