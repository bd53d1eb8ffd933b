"""Which items a request lets in: expressions on item columns, allow lists, at most n items of a value."""
