"""Records of any format into event batches, and each record that is set aside with its reason."""
