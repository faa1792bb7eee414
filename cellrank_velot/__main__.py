"""``python -m cellrank_velot``: the command line, see :mod:`cellrank_velot.job.cli`."""

from cellrank_velot.job.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
