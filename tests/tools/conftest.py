"""The tools are scripts, not a package: their directory goes on the path, as it does when one of them is run."""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
