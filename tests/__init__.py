"""What crosses packages: end-to-end jobs and fault injection. Nothing imports it."""
