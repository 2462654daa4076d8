"""What runs on a node of a cluster: the agent that joins Ray, listens for notices and keeps the dead-man timer."""
