"""What training takes before it runs: parameters, memory, time. Pure and without torch; launcher and recipes use it."""
