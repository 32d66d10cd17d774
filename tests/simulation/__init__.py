"""A clock, a scheduler and faults that follow from a seed, around real owners and stores."""
