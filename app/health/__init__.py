"""Whether a worker should be asked, and how much it reads."""
