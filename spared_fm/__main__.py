"""``python -m spared_fm``."""

from spared_fm.cli import main

if __name__ == "__main__":
    main()
