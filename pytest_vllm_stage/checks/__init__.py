"""What only the suites use."""
