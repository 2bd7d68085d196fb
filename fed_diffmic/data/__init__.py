"""Data: from a published folder to a validated table, decoded images and a site's three parts."""
