"""Event batches into partial cells of layers. Pure: no clock, no I/O, no state of its own."""
