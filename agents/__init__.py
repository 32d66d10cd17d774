"""What happens: the steps from a chunk of records to applied state and emissions."""
