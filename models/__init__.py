"""The two towers in torch, their losses, training and export.

Letters in shape comments: B requests (or windows), L history positions, T = L + 1 tokens, D dimensions of the taste
part of a vector, A of its affinity part, P of its popularity part, W = D + A + P, N items of the catalogue, E owned
items of all requests of a batch, M targets of a batch, C code columns, V value columns, S statistics, G user
statistics, Q categories, H heads, K basis functions, F single-valued item features, U training users.
"""
