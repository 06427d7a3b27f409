"""``python -m orchestrator``: the same as the console script ``sweep``."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
