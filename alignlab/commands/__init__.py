"""The commands of `python -m alignlab`: each `add_*` adds a command with its options, and sets the function that runs it."""
