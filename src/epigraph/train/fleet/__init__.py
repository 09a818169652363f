"""Many users' prefixes in one run: who has which user, in an output that several workers share."""
