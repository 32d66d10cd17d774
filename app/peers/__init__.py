"""Live reads of other workers: what is asked, what travels, what goes wrong."""
