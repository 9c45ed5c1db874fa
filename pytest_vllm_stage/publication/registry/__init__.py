"""The Model Registry over REST."""
