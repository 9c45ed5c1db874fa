"""Every setting with its source, and the profile."""
