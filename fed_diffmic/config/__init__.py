"""What may be said, and how it is read: configurations, their checks, their reference."""
