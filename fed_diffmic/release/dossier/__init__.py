"""The dossier of a finished run: what is known of it, each number with the file that it stands in."""
