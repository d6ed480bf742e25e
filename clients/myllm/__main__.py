"""`python -m myllm`: the `myllm` command."""

from .cli import main

if __name__ == "__main__":
    main()
