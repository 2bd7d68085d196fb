"""The finished model: what vouches for it, and what of it is a site's own."""
