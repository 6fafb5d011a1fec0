"""`python -m stillhouse.cli`."""

import sys

if not sys.flags.safe_path:
    # `python -m` puts the working folder first, where any file may have the name of a library.
    del sys.path[0]

from stillhouse.cli import main

if __name__ == "__main__":
    main()
