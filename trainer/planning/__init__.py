"""What training takes before it runs: parameters, memory, time. Pure and without torch; for the launcher and recipes."""
