"""Who is believed: certificates, tokens of readers, proofs between workers, secrets in files."""
