"""GPU nodes on EC2. `plan` is pure; every request that changes something is written down before it is sent."""
