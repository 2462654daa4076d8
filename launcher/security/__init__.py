"""Who may do what, and certificates that prove it. Used by the service, its clients and the Ray clusters."""
