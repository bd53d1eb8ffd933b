"""A training run: its configuration, its stages and its folder."""
