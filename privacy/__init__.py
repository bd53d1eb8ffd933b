"""Differential privacy: what of a bundle is made from people is noised."""
