"""What an answer is worth: verifiers, a user's functions, reward models, and their sum. For the recipes that sample."""
