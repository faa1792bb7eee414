"""``python -m cellrank_velot``: the command line, see :mod:`cellrank_velot.cli`."""

from cellrank_velot.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
