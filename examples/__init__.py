"""Job files that run as they are. Nothing else imports what stands here."""
