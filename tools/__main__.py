"""`python -m tools` is `apf`."""

from tools.cli import main

if __name__ == "__main__":
    main()
