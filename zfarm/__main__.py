"""``python -m zfarm`` is the command ``zfarm``."""

import sys

from zfarm.face.cli import main

if __name__ == "__main__":
    sys.exit(main())
