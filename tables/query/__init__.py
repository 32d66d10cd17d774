"""What is asked and answered: requests, the planner, the merge of live and archived cells."""
