"""Long runs under faults, with figures. Nothing imports it."""
