import sys

from redge_guidance.cli import main

if __name__ == "__main__":
    sys.exit(main())
