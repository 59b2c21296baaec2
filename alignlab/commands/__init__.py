"""The commands of `python -m alignlab`, a module each: `add` says which words it takes, `run` does it."""
