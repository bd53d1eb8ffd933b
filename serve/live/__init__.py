"""The catalogue while it is served: items added, changed and removed without training, kept over restarts."""
