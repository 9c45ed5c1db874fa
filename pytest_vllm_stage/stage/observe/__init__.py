"""Read the stage as it is now, and find out what is wrong with it."""
