"""`python -m redge_guidance generate ...`, and so `accelerate launch -m redge_guidance generate ...`."""

import sys

from redge_guidance.cli import main

if __name__ == "__main__":
    sys.exit(main())
