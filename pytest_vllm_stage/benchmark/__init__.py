"""What a run does with load steps: plan, measure, judge, keep, compare."""
