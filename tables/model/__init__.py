"""The map as types: sources, layers, windows, keys, and the rules that follow from them."""
