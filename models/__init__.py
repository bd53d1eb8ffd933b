"""The two towers in torch, their losses, training and export.

Letters in shape comments: B requests (or windows), L history positions, T = L + 1 tokens, N items
of the catalogue, M targets of a batch, E owned items of all its requests, W = D + A + P entries of
a vector: taste, category affinity, popularity. C code columns, V value columns, S statistics of an
owned item, G of a user, Q categories, H heads, K basis functions, F single-valued item features, U
training users.
"""
