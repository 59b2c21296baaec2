"""A small world of stories with an exact oracle: `stories` writes and judges them, `world` yields records."""
