"""Tables of results: `folders` of all runs below a folder, `sweep` of the jobs of a sweep, `render` writes them as text."""

from pathlib import Path

EXPERIMENTS = Path("experiments")
"""Where the published numbers of tables are looked for, from the present folder."""
