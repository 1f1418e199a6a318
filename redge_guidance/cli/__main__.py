import sys

from redge_guidance.cli import main

sys.exit(main())
