"""`alignlab run` in a checkout, nothing installed: `python run.py --help` lists what to choose from."""

import sys

from alignlab.commands.run import run, start

__all__ = ["run", "start"]

if __name__ == "__main__":
    start(sys.argv[1:])
