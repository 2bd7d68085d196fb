"""What a site runs."""
