"""Does anything give the test away: columns that know the choice, and events that stand in two parts."""
