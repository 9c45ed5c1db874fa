"""One load step as plain data: the plan, its samples, and the one function from samples to numbers."""
