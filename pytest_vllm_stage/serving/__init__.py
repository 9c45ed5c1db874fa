"""The served model seen from outside: where it is, what it answers, what it measures of itself."""
