"""These chapters depend on a server elsewhere: the state, streams, object storage, Ray."""
