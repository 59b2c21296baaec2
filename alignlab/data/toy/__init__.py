"""A small world of stories with an exact oracle: `grammar` writes, `oracle` judges, `world` yields records."""
