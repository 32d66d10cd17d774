"""Dead letters: the side topics that hold them, and sending them again."""
