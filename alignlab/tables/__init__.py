"""Runs to tables: `folders` takes what lies below a folder, `jobs` and `lines` the jobs that a sweep has written down."""
