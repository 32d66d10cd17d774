"""Examples: whole maps with input to run them on."""
