"""Tables of results: `folders` of all runs below a folder, `sweep` of the jobs of a sweep, `render` writes them as text."""
