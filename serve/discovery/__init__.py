"""Show people how a recommender thinks, and let them steer it: reasons, dials, segments, exploration."""
