"""What depends on a server elsewhere: the state, streams of events, object storage."""
