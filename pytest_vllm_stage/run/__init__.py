"""A run as each of its processes sees it: identity, directory, journal, shared facts."""
