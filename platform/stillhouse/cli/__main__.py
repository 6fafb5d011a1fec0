"""`python -m stillhouse.cli`."""

from stillhouse.cli import main

if __name__ == "__main__":
    main()
